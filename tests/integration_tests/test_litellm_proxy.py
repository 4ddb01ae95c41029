"""The OpenAI LLMs against LiteLLM's proxy, a server that we did not write."""

from __future__ import annotations

from typing import Any, Protocol

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
    Step,
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

# The first test waits until the proxy has started.
pytestmark = pytest.mark.timeout(120)

_SIMULATED = "Hello from LiteLLM"
_MAX_RETRIES = 2


class NewLLM(Protocol):
    """Makes a model of the proxy."""

    def __call__(self, cls: Any, model: str, **fields: Any) -> Any:
        """The model, with these fields besides."""


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def new_llm(litellm_proxy: Proxy, fake_clock: FakeClock, recorder: Recorder) -> NewLLM:
    def new_llm(cls: Any, model: str, **fields: Any) -> Any:
        settings: dict[str, Any] = {
            "api_key": KEY,
            "max_retries": _MAX_RETRIES,
            "clock": fake_clock,
            "callbacks": [recorder],
        }
        if cls is AzureOpenAI:
            settings["azure_endpoint"] = litellm_proxy.url
            settings["azure_deployment"] = model
            settings["api_version"] = "2024-10-21"
        else:
            settings["base_url"] = litellm_proxy.openai_url
        return cls(model=model, **{**settings, **fields})

    return new_llm


@pytest.fixture(params=[OpenAI, AzureOpenAI, OpenAIChat], ids=lambda cls: cls.__name__)
def cls(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def passed_on(cls: Any) -> str:
    """The proxy's model that asks `provider`, at the endpoint of the class."""
    return CHAT if cls is OpenAIChat else INSTRUCT


def _asked(provider: FaultyGateway) -> int:
    # The proxy asks for the list of models besides, when it likes.
    return len([request for request in provider.requests if request.endpoint])


def _outcomes(attempt_log: dict[str, Any]) -> list[str]:
    return [attempt["outcome"] for attempt in attempt_log["attempts"]]


# Answers.


def test_an_answer_has_text_usage_and_attempts(
    cls: Any, twin: Twin, new_llm: NewLLM
) -> None:
    """A healthy answer has its text, its usage, and one attempt."""
    result = twin.generate(new_llm(cls, "well"), ["Hello?"])
    assert result.generations[0][0].text == _SIMULATED
    assert result.llm_output["token_usage"]["total_tokens"] == 30
    assert _outcomes(result.llm_output["retryrouter"]) == ["ok"]


def test_a_stream_comes_in_pieces(cls: Any, twin: Twin, new_llm: NewLLM) -> None:
    """A healthy stream comes chunk by chunk, and adds up to the answer."""
    chunks = twin.stream(new_llm(cls, "well"), "Hello?")
    assert "".join(chunks) == _SIMULATED
    assert len([chunk for chunk in chunks if chunk]) > 1


def test_several_prompts_are_answered_each(
    cls: Any, twin: Twin, passed_on: str, new_llm: NewLLM, provider: FaultyGateway
) -> None:
    """Each prompt has its answer, in one request where the endpoint takes several."""
    answers = twin.batch(new_llm(cls, passed_on), ["a", "b", "c"])
    assert answers == [STUB_TEXT] * 3
    assert _asked(provider) == (3 if cls is OpenAIChat else 1)


def test_too_few_answers_are_an_error(twin: Twin, new_llm: NewLLM) -> None:
    """LiteLLM's simulation answers one of two prompts, which is not a result."""
    with pytest.raises(MalformedResponseError, match="1 choices, 2 expected"):
        twin.generate(new_llm(OpenAI, "well"), ["a", "b"])


def test_a_stream_has_its_usage(
    cls: Any, twin: Twin, passed_on: str, new_llm: NewLLM, provider: FaultyGateway
) -> None:
    """LiteLLM counts a stream in a chunk with an empty choice, after its end."""
    llm = new_llm(cls, passed_on, streaming=True, stream_usage=True)
    usage = twin.generate(llm, ["Hello?"]).llm_output["token_usage"]
    assert usage["completion_tokens"] == 5
    assert usage["total_tokens"] == usage["prompt_tokens"] + 5
    assert _asked(provider) == 1


def test_a_stream_without_usage_has_none(cls: Any, twin: Twin, new_llm: NewLLM) -> None:
    """The zeros that LiteLLM sends where it has not counted are left out."""
    llm = new_llm(cls, "well", streaming=True)
    assert twin.generate(llm, ["Hello?"]).llm_output["token_usage"] == {}


# Failures that LiteLLM simulates.

_SIMULATED_FAILURES = [
    pytest.param("throttled", RateLimitError, openai.RateLimitError, 429, id="429"),
    pytest.param("failing", ServerError, openai.InternalServerError, 500, id="500"),
    pytest.param(
        "overloaded", UnavailableError, openai.InternalServerError, 529, id="529"
    ),
    pytest.param("slow", APITimeoutError, openai.APIStatusError, 408, id="408"),
    pytest.param(
        "overlong", ContextLengthError, openai.BadRequestError, 400, id="context"
    ),
]


@pytest.mark.parametrize("ask", ["invoke", "stream"])
@pytest.mark.parametrize(("model", "error", "sdk_error", "status"), _SIMULATED_FAILURES)
def test_a_failure_is_what_litellm_simulates(
    cls: Any,
    twin: Twin,
    ask: str,
    model: str,
    error: type[RetryRouterError],
    sdk_error: type[Exception],
    status: int,
    new_llm: NewLLM,
    recorder: Recorder,
    fake_clock: FakeClock,
) -> None:
    """A failure has our class, the SDK's and its status; transient ones are retried."""
    is_final = status == 400
    with pytest.raises(error) as caught:
        getattr(twin, ask)(new_llm(cls, model), "Hello?")
    assert isinstance(caught.value, sdk_error)
    assert caught.value.status_code == status
    assert caught.value.request_id is not None
    assert caught.value.is_retryable is False
    assert caught.value.attempts == (1 if is_final else 1 + _MAX_RETRIES)
    retried = [] if is_final else [1, 2]
    assert [retry.attempt_number for retry in recorder.retries] == retried
    assert len(fake_clock.sleeps) == len(retried)


def test_a_timeout_of_ours_ends_the_wait(
    twin: Twin, new_llm: NewLLM, recorder: Recorder
) -> None:
    """Where our timeout is shorter than the proxy's, ours is reported."""
    llm = new_llm(OpenAIChat, "slow", timeout=0.02)
    with pytest.raises(APITimeoutError) as caught:
        twin.invoke(llm, "Hello?")
    assert caught.value.status_code is None
    assert len(recorder.retries) == _MAX_RETRIES


def test_a_wrong_key_is_not_retried(
    cls: Any, twin: Twin, new_llm: NewLLM, recorder: Recorder
) -> None:
    """Without a database LiteLLM answers 400 to a key that it does not know."""
    llm = new_llm(cls, "well", api_key="sk-some-other-key")
    with pytest.raises(InvalidRequestError, match="No connected db") as caught:
        twin.invoke(llm, "Hello?")
    assert caught.value.attempts == 1
    assert recorder.retries == []


def test_an_unknown_model_is_not_found(
    cls: Any, twin: Twin, new_llm: NewLLM, recorder: Recorder
) -> None:
    """LiteLLM answers 400 where OpenAI answers 404; both are NotFoundError."""
    with pytest.raises(NotFoundError, match="no-such-model") as caught:
        twin.invoke(new_llm(cls, "no-such-model"), "Hello?")
    assert isinstance(caught.value, openai.NotFoundError)
    assert caught.value.status_code == 400
    assert recorder.retries == []


# Failures of the provider behind the proxy.


def test_a_transient_failure_behind_the_proxy(
    cls: Any,
    twin: Twin,
    passed_on: str,
    new_llm: NewLLM,
    provider: FaultyGateway,
    recorder: Recorder,
) -> None:
    """The third attempt is answered, and the attempt log has the two before it."""
    provider.script(Status(503), Reset())
    result = twin.generate(new_llm(cls, passed_on), ["Hello?"])
    assert result.generations[0][0].text == STUB_TEXT
    outcomes = _outcomes(result.llm_output["retryrouter"])
    assert outcomes == ["unavailable", "server_error", "ok"]
    assert len(recorder.retries) == 2
    assert _asked(provider) == 3


def test_a_stream_is_repeated_before_its_first_token(
    cls: Any,
    twin: Twin,
    passed_on: str,
    new_llm: NewLLM,
    provider: FaultyGateway,
    recorder: Recorder,
) -> None:
    """A stream that fails before its first token is repeated."""
    provider.script(Status(503), ErrorEvent("no", after=0))
    assert "".join(twin.stream(new_llm(cls, passed_on), "Hello?")) == STUB_TEXT
    assert len(recorder.retries) == 2


def test_a_stream_is_not_repeated_after_its_first_token(
    cls: Any,
    twin: Twin,
    passed_on: str,
    new_llm: NewLLM,
    provider: FaultyGateway,
    recorder: Recorder,
) -> None:
    """An error in the middle of a stream is raised, with the delivered text."""
    provider.script(ErrorEvent("the provider broke off", after=2))
    chunks: list[str] = []
    with pytest.raises(ServerError, match="the provider broke off") as caught:
        twin.stream(new_llm(cls, passed_on), "Hello?", into=chunks)
    assert "".join(chunks) == caught.value.delivered
    assert STUB_TEXT.startswith(caught.value.delivered)
    assert recorder.retries == []


def test_a_cut_that_the_proxy_hides_cannot_be_seen(
    twin: Twin, new_llm: NewLLM, provider: FaultyGateway
) -> None:
    """A limit that the LLMs' page names: LiteLLM makes up the missing end."""
    provider.script(Truncate(after=2))
    chunks = twin.stream(new_llm(OpenAIChat, CHAT), "Hello?")
    assert "".join(chunks) == "Hello from"


def test_the_providers_retry_after_is_obeyed(
    twin: Twin, new_llm: NewLLM, provider: FaultyGateway, fake_clock: FakeClock
) -> None:
    """LiteLLM passes on the provider's `Retry-After` by another name."""
    provider.script(Status(429, {"retry-after": "7"}))
    assert twin.invoke(new_llm(OpenAIChat, CHAT), "Hello?") == STUB_TEXT
    (waited,) = fake_clock.sleeps
    assert waited >= 7


def test_the_proxys_own_retry_after_is_obeyed(
    twin: Twin, new_llm: NewLLM, provider: FaultyGateway, fake_clock: FakeClock
) -> None:
    """A model in LiteLLM's cooldown is not asked again before it ends."""
    # The cooldown begins after the answer: a few attempts may come before it.
    provider.script(*[Status(429)] * 21)
    with pytest.raises(RateLimitError, match="Try again in") as caught:
        twin.invoke(new_llm(OpenAIChat, MOODY, max_retries=20), "Hello?")
    assert caught.value.retry_after is not None
    assert fake_clock.sleeps[-1] >= caught.value.retry_after > 1


def test_a_retry_of_the_proxy_is_one_attempt(
    twin: Twin, new_llm: NewLLM, provider: FaultyGateway, recorder: Recorder
) -> None:
    """Where the proxy retries itself, we see one attempt."""
    provider.script(Status(503))
    result = twin.generate(new_llm(OpenAIChat, PATIENT), ["Hello?"])
    assert _outcomes(result.llm_output["retryrouter"]) == ["ok"]
    assert _asked(provider) == 2
    assert recorder.retries == []


_FINAL = [
    pytest.param(Status(401), AuthenticationError, id="401"),
    pytest.param(Status(403), PermissionDeniedError, id="403"),
    pytest.param(Status(404), NotFoundError, id="404"),
    pytest.param(Status(422), InvalidRequestError, id="422"),
    pytest.param(
        Status(
            429,
            error_code="insufficient_quota",
            message="You exceeded your current quota, please check your plan.",
        ),
        QuotaExceededError,
        id="quota",
    ),
    pytest.param(
        Status(
            400,
            error_code="context_length_exceeded",
            message="This model's maximum context length is 4097 tokens.",
        ),
        ContextLengthError,
        id="context",
    ),
    pytest.param(
        Status(
            400,
            error_code="content_policy_violation",
            message="Your request was rejected as a result of our safety system.",
        ),
        ContentFilterError,
        id="safety",
    ),
]


@pytest.mark.parametrize(("step", "error"), _FINAL)
def test_a_final_failure_behind_the_proxy(
    cls: Any,
    twin: Twin,
    passed_on: str,
    step: Step,
    error: type[RetryRouterError],
    new_llm: NewLLM,
    provider: FaultyGateway,
) -> None:
    """A final error of the provider keeps its kind through the proxy."""
    provider.script(step)
    with pytest.raises(error) as caught:
        twin.invoke(new_llm(cls, passed_on), "Hello?")
    assert caught.value.attempts == 1
    assert _asked(provider) == 1


def test_a_refusal_is_not_an_empty_answer(
    twin: Twin, new_llm: NewLLM, provider: FaultyGateway
) -> None:
    """LiteLLM moves a refusal to `provider_specific_fields`; it is read there."""
    provider.script(_refusal())
    with pytest.raises(ContentFilterError, match="I will not"):
        twin.invoke(new_llm(OpenAIChat, CHAT), "Hello?")


def _refusal() -> Step:
    return Body(
        headers={"content-type": "application/json"},
        body=(
            '{"id": "1", "object": "chat.completion", "created": 1, "model": "gpt-4o",'
            ' "choices": [{"index": 0, "finish_reason": "stop", "message":'
            ' {"role": "assistant", "content": null, "refusal": "I will not"}}],'
            ' "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}'
        ),
    )
