"""The OpenAI LLMs against LiteLLM's proxy, a server that we did not write."""

import json
from dataclasses import dataclass
from typing import Any

import openai
import pytest

from langchain_retryrouter import (
    APITimeoutError,
    AuthenticationError,
    AzureOpenAI,
    ContentFilterError,
    ContextLengthError,
    InvalidRequestError,
    MalformedResponseError,
    NotFoundError,
    OpenAI,
    OpenAIChat,
    PermissionDeniedError,
    QuotaExceededError,
    RateLimitError,
    RetryRouterError,
    ServerError,
    UnavailableError,
)
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Body,
    ErrorEvent,
    FakeClock,
    FaultyGateway,
    Reset,
    Status,
    Truncate,
)
from tests.integration_tests.litellm_proxy import (
    CHAT,
    INSTRUCT,
    KEY,
    MOODY,
    PATIENT,
    Proxy,
)
from tests.unit_tests.conftest import Twin
from tests.unit_tests.llms.conftest import Recorder

_SIMULATED = "Hello from LiteLLM"
_MAX_RETRIES = 2
_TOKENS = ("prompt_tokens", "completion_tokens", "total_tokens")


@dataclass(frozen=True)
class Lab:
    """Models of the proxy, the provider behind it, and what a test wants to see."""

    twin: Twin
    proxy: Proxy
    provider: FaultyGateway
    clock: FakeClock
    recorder: Recorder

    def llm(self, cls: Any, model: str | None = None, **fields: Any) -> Any:
        """A model of the proxy; unless it is named, one that asks the provider."""
        model = model or (CHAT if cls is OpenAIChat else INSTRUCT)
        settings: dict[str, Any] = {
            "api_key": KEY,
            "max_retries": _MAX_RETRIES,
            "clock": self.clock,
            "callbacks": [self.recorder],
        }
        if cls is AzureOpenAI:
            settings["azure_endpoint"] = self.proxy.url
            settings["azure_deployment"] = model
            settings["api_version"] = "2024-10-21"
        else:
            settings["base_url"] = self.proxy.openai_url
        return cls(model=model, **{**settings, **fields})

    @property
    def asked(self) -> int:
        # The proxy asks for the list of models besides, when it likes.
        return len([request for request in self.provider.requests if request.endpoint])

    @property
    def retries(self) -> list[int]:
        """The numbers of the attempts that another one followed."""
        return [retry.attempt_number for retry in self.recorder.retries]


@pytest.fixture
def lab(
    twin: Twin, litellm_proxy: Proxy, provider: FaultyGateway, fake_clock: FakeClock
) -> Lab:
    return Lab(twin, litellm_proxy, provider, fake_clock, Recorder())


@pytest.fixture(params=[OpenAI, AzureOpenAI, OpenAIChat], ids=lambda cls: cls.__name__)
def cls(request: pytest.FixtureRequest) -> Any:
    return request.param


def _outcomes(attempt_log: dict[str, Any]) -> list[str]:
    return [attempt["outcome"] for attempt in attempt_log["attempts"]]


# Answers.


def test_an_answer_has_text_usage_and_attempts(lab: Lab, cls: Any) -> None:
    """A healthy answer has text, usage and one attempt; a stream comes in pieces."""
    llm = lab.llm(cls, "well")
    result = lab.twin.generate(llm, ["Hello?"])
    chunks = lab.twin.stream(llm, "Hello?")
    assert result.generations[0][0].text == "".join(chunks) == _SIMULATED
    assert result.llm_output["token_usage"]["total_tokens"] == 30
    assert _outcomes(result.llm_output["retryrouter"]) == ["ok"]
    assert len([chunk for chunk in chunks if chunk]) > 1


def test_several_prompts_are_answered_each(lab: Lab, cls: Any) -> None:
    """Each prompt has its answer, in one request where the endpoint takes several."""
    answers = lab.twin.batch(lab.llm(cls), ["a", "b", "c"])
    assert answers == [STUB_TEXT] * 3
    assert lab.asked == (3 if cls is OpenAIChat else 1)


def test_too_few_answers_are_an_error(lab: Lab) -> None:
    """LiteLLM's simulation answers one of two prompts, which is not a result."""
    with pytest.raises(MalformedResponseError, match="1 choices, 2 expected"):
        lab.twin.generate(lab.llm(OpenAI, "well"), ["a", "b"])


def test_a_stream_has_its_usage(lab: Lab, cls: Any) -> None:
    """LiteLLM counts a stream in a chunk with an empty choice, after its end.

    The zeros that it sends where it has not counted are left out.
    """
    llm = lab.llm(cls, streaming=True, stream_usage=True)
    usage = lab.twin.generate(llm, ["Hello?"]).llm_output["token_usage"]
    assert usage["completion_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5
    assert lab.asked == 1
    result = lab.twin.generate(lab.llm(cls, "well", streaming=True), ["Hello?"])
    assert result.llm_output["token_usage"] == {}


# Failures that LiteLLM simulates.

_SIMULATED_FAILURES: dict[str, tuple[type[RetryRouterError], type[Exception], int]] = {
    "throttled": (RateLimitError, openai.RateLimitError, 429),
    "failing": (ServerError, openai.InternalServerError, 500),
    "overloaded": (UnavailableError, openai.InternalServerError, 529),
    "slow": (APITimeoutError, openai.APIStatusError, 408),
    "overlong": (ContextLengthError, openai.BadRequestError, 400),
    "no-such-model": (NotFoundError, openai.NotFoundError, 400),
}


@pytest.mark.parametrize("ask", ["invoke", "stream"])
@pytest.mark.parametrize("model", _SIMULATED_FAILURES)
def test_a_failure_is_what_litellm_simulates(
    lab: Lab, cls: Any, ask: str, model: str
) -> None:
    """A failure has our class, the SDK's and its status; transient ones are retried."""
    error, sdk_error, status = _SIMULATED_FAILURES[model]
    retried = [] if status == 400 else [1, 2]
    with pytest.raises(error) as caught:
        getattr(lab.twin, ask)(lab.llm(cls, model), "Hello?")
    assert isinstance(caught.value, sdk_error)
    assert caught.value.status_code == status
    assert caught.value.request_id is not None
    assert caught.value.is_retryable is False
    assert caught.value.attempts == 1 + len(retried)
    assert lab.retries == retried
    assert len(lab.clock.sleeps) == len(retried)


def test_a_timeout_of_ours_ends_the_wait(lab: Lab) -> None:
    """Where our timeout is shorter than the proxy's, ours is reported."""
    llm = lab.llm(OpenAIChat, "silent", timeout=0.3)
    with pytest.raises(APITimeoutError) as caught:
        lab.twin.invoke(llm, "Hello?")
    assert caught.value.status_code is None
    assert lab.retries == [1, 2]


def test_a_wrong_key_is_not_retried(lab: Lab, cls: Any) -> None:
    """Without a database LiteLLM answers 400 to a key that it does not know."""
    llm = lab.llm(cls, "well", api_key="sk-some-other-key")
    with pytest.raises(InvalidRequestError, match="No connected db") as caught:
        lab.twin.invoke(llm, "Hello?")
    assert caught.value.attempts == 1
    assert lab.retries == []


# Failures of the provider behind the proxy.


def test_a_transient_failure_behind_the_proxy(lab: Lab, cls: Any) -> None:
    """The third attempt is answered, and the attempt log has the two before it."""
    lab.provider.script(Status(503), Reset())
    result = lab.twin.generate(lab.llm(cls), ["Hello?"])
    assert result.generations[0][0].text == STUB_TEXT
    outcomes = _outcomes(result.llm_output["retryrouter"])
    assert outcomes == ["unavailable", "server_error", "ok"]
    assert lab.retries == [1, 2]
    assert lab.asked == 3


def test_a_stream_is_repeated_before_its_first_token(lab: Lab, cls: Any) -> None:
    """A stream that fails before its first token is repeated."""
    lab.provider.script(Status(503), ErrorEvent("no", after=0))
    assert "".join(lab.twin.stream(lab.llm(cls), "Hello?")) == STUB_TEXT
    assert lab.retries == [1, 2]


def test_a_stream_is_not_repeated_after_its_first_token(lab: Lab, cls: Any) -> None:
    """An error in the middle of a stream is raised, with the delivered text."""
    lab.provider.script(ErrorEvent("the provider broke off", after=2))
    chunks: list[str] = []
    with pytest.raises(ServerError, match="the provider broke off") as caught:
        lab.twin.stream(lab.llm(cls), "Hello?", into=chunks)
    assert "".join(chunks) == caught.value.delivered
    assert STUB_TEXT.startswith(caught.value.delivered)
    assert lab.retries == []


def test_a_cut_that_the_proxy_hides_cannot_be_seen(lab: Lab) -> None:
    """A limit that the LLMs' page names: LiteLLM makes up the missing end."""
    lab.provider.script(Truncate(after=2))
    chunks = lab.twin.stream(lab.llm(OpenAIChat), "Hello?")
    assert "".join(chunks) == "Hello from"


def test_the_providers_retry_after_is_obeyed(lab: Lab) -> None:
    """LiteLLM passes on the provider's `Retry-After` by another name."""
    lab.provider.script(Status(429, {"retry-after": "7"}))
    assert lab.twin.invoke(lab.llm(OpenAIChat), "Hello?") == STUB_TEXT
    (waited,) = lab.clock.sleeps
    assert waited >= 7


def test_the_proxys_own_retry_after_is_obeyed(lab: Lab) -> None:
    """A model in LiteLLM's cooldown is not asked again before it ends."""
    # The cooldown begins after the answer: a few attempts may come before it.
    lab.provider.script(*[Status(429)] * 21)
    with pytest.raises(RateLimitError, match="Try again in") as caught:
        lab.twin.invoke(lab.llm(OpenAIChat, MOODY, max_retries=20), "Hello?")
    assert caught.value.retry_after is not None
    assert lab.clock.sleeps[-1] >= caught.value.retry_after > 1


def test_a_retry_of_the_proxy_is_one_attempt(lab: Lab) -> None:
    """Where the proxy retries itself, we see one attempt."""
    lab.provider.script(Status(503))
    result = lab.twin.generate(lab.llm(OpenAIChat, PATIENT), ["Hello?"])
    assert _outcomes(result.llm_output["retryrouter"]) == ["ok"]
    assert lab.asked == 2
    assert lab.retries == []


_QUOTA = "You exceeded your current quota, check your plan."
_TOO_LONG = "This model's maximum context length is 4097."
_REJECTED = "Your request was rejected by our safety system."
# The provider's status, code and sentence, and the class of the error.
_FINAL: list[tuple[int, str | None, str, type[RetryRouterError]]] = [
    (401, None, "no", AuthenticationError),
    (403, None, "no", PermissionDeniedError),
    (404, None, "no", NotFoundError),
    (422, None, "no", InvalidRequestError),
    (429, "insufficient_quota", _QUOTA, QuotaExceededError),
    (400, "context_length_exceeded", _TOO_LONG, ContextLengthError),
    (400, "content_policy_violation", _REJECTED, ContentFilterError),
]


@pytest.mark.parametrize(("status", "code", "message", "error"), _FINAL)
def test_a_final_failure_behind_the_proxy(
    lab: Lab, cls: Any, status: int, code: str | None, message: str, error: Any
) -> None:
    """A final error of the provider keeps its kind through the proxy."""
    lab.provider.script(Status(status, error_code=code, message=message))
    with pytest.raises(error) as caught:
        lab.twin.invoke(lab.llm(cls), "Hello?")
    assert caught.value.attempts == 1
    assert lab.asked == 1


def test_a_refusal_is_not_an_empty_answer(lab: Lab) -> None:
    """LiteLLM moves a refusal to `provider_specific_fields`; it is read there."""
    message = {"role": "assistant", "content": None, "refusal": "I will not"}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    facts = {"id": "1", "object": "chat.completion", "created": 1, "model": "gpt-4o"}
    answer = {**facts, "choices": [choice], "usage": dict.fromkeys(_TOKENS, 1)}
    headers = {"content-type": "application/json"}
    lab.provider.script(Body(headers=headers, body=json.dumps(answer)))
    with pytest.raises(ContentFilterError, match="I will not"):
        lab.twin.invoke(lab.llm(OpenAIChat), "Hello?")
