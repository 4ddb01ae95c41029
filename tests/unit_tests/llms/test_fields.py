"""The fields: names, aliases, variables, checks, and what is shown of them."""

import json
import sys
from pathlib import Path
from typing import Any

import openai
import pytest
import tiktoken
from langchain_core.load import dumps
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_core.runnables import ConfigurableField
from pydantic import SecretStr, ValidationError

from langchain_retryrouter import (
    AzureOpenAI,
    BaseOpenAI,
    CircuitBreaker,
    OpenAI,
    OpenAIChat,
    RateLimit,
    RetryBudget,
    RetryPolicy,
)
from langchain_retryrouter.stores import MemoryStore
from langchain_retryrouter.testing import STUB_TEXT, FakeClock

from .conftest import KEY, Env, NewLLM


@pytest.mark.parametrize(
    ("field", "variables"),
    [
        ("openai_api_base", ["OPENAI_API_BASE", "OPENAI_BASE_URL"]),
        ("openai_organization", ["OPENAI_ORG_ID", "OPENAI_ORGANIZATION"]),
        ("openai_proxy", ["OPENAI_PROXY"]),
    ],
)
@pytest.mark.parametrize("cls", [OpenAI, OpenAIChat])
def test_variables_are_read(
    monkeypatch: pytest.MonkeyPatch, cls: Any, field: str, variables: list[str]
) -> None:
    """What is not given is read from the environment; an empty variable is ignored."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert cls().openai_api_key.get_secret_value() == KEY
    for variable in reversed(variables):  # The SDK's own name comes second.
        monkeypatch.setenv(variable, f"http://{variable}")
        assert getattr(cls(), field) == f"http://{variable}"
        assert getattr(cls(**{field: "http://given"}), field) == "http://given"
    for variable in (*variables, "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(variable, "")
    assert getattr(cls(), field) is None
    client = cls().client._client  # noqa: SLF001 - the SDK's name
    assert str(client.base_url) == "https://api.openai.com/v1/"
    assert (client.organization, client.project) == (None, None)


@pytest.mark.parametrize("cls", [OpenAI, OpenAIChat])
@pytest.mark.parametrize("key", [None, ""])
def test_a_missing_key_is_said_at_once(cls: Any, key: Any) -> None:
    """Without a key, construction says what to do."""
    with pytest.raises(ValidationError, match=r"pass api_key=.*OPENAI_API_KEY"):
        cls(api_key=key)


@pytest.mark.parametrize(
    ("key", "what"),
    [
        (f"{KEY}\n", "line end as character 24 of 24"),
        (f" {KEY}", "space as character 1 of"),
        ("sk-ключ-secret", "character outside ASCII or a control character"),
    ],
)
def test_a_key_that_no_header_can_carry_is_refused(key: str, what: str) -> None:
    """A key with a line end, copied from a file, is refused, and not shown."""
    with pytest.raises(ValidationError, match=what) as caught:
        OpenAI(api_key=key)
    assert "secret" not in str(caught.value)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 0}, "n must be 1 or more, not 0"),
        ({"n": -2}, "n must be 1 or more, not -2"),
        ({"best_of": 0}, "best_of must be 1 or more, not 0"),
        ({"n": 3, "best_of": 2}, "best_of=2 is less than n=3"),
        ({"batch_size": 0}, "batch_size must be 1 or more, not 0"),
        ({"max_tokens": -2}, "max_tokens must be -1, 0 or more, or None, not -2"),
        ({"timeout": 0}, "request_timeout must be seconds above 0.*not 0"),
        ({"timeout": -1.5}, "request_timeout must be .* not -1.5"),
        ({"timeout": (1, 2, 3)}, "request_timeout must be"),
        ({"timeout": (1, 0)}, "request_timeout must be"),
        ({"timeout": "5"}, "request_timeout must be .* not '5'"),
        ({"timeout": float("inf")}, "request_timeout must be"),
        ({"max_retries": "2"}, "max_retries must be .* not '2'"),
        (
            {"max_retries": 1, "retry_policy": RetryPolicy(max_retries=4)},
            "max_retries=1 and a retry_policy",
        ),
    ],
    ids=str,
)
def test_numbers_that_cannot_be_are_refused(
    new_llm: NewLLM, fields: dict[str, Any], message: str
) -> None:
    """A wrong number is refused at construction, by name and value."""
    for cls in (OpenAI, OpenAIChat) if "best_of" not in fields else (OpenAI,):
        with pytest.raises(ValidationError, match=message):
            new_llm(cls, **fields)


def test_wrong_options_of_a_call_are_refused(every: Env) -> None:
    """The same holds for a call's options: nothing is sent."""
    for n in (-1, 1.5, "2"):
        with pytest.raises(ValueError, match=f"n must be 1 or more, not {n!r}"):
            every.invoke(every.new(), "hi", n=n)
    assert every.gateway.requests == []


def test_the_timeout_reaches_the_sdk(every: Env) -> None:
    """Seconds, a pair, or the HTTP library's `Timeout`; the call's goes first."""
    library = openai.Timeout(4, read=1.5)
    for timeout, read in ((3, 3), ((1, 2.5), 2.5), (library, 1.5), (None, 600)):
        every.invoke(every.new(timeout=timeout), "hi")
        sent = every.gateway.requests[-1].headers["x-stainless-read-timeout"]
        assert float(sent) == read
    every.invoke(every.new(timeout=9), "hi", timeout=(1, 2.5))
    assert every.gateway.requests[-1].headers["x-stainless-read-timeout"] == "2.5"


# Fields that are none.


def test_unknown_fields_become_model_kwargs(every: Env) -> None:
    """A parameter without a field is sent, with a warning in case it was a slip."""
    with pytest.warns(UserWarning, match="stop is not default parameter") as caught:
        llm = every.new(stop="stub")
    assert caught[0].filename.endswith("conftest.py")
    assert llm.model_kwargs == {"stop": "stub"}
    assert every.invoke(llm, "hi") == "Hello from the "
    assert every.gateway.requests[0].payload["stop"] == "stub"
    kwargs = {"user": "me"}
    every.invoke(every.new(model_kwargs=kwargs), "hi")  # Without a warning.
    assert every.gateway.requests[1].payload["user"] == "me"
    assert kwargs == {"user": "me"}


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("temperature", "temperature", 0.2),
        ("model", "model_name", "some-model"),
        ("model_name", "model_name", "some-model"),
    ],
)
def test_a_field_among_model_kwargs_is_moved(
    new_llm: NewLLM, name: str, field: str, value: Any
) -> None:
    """A field in `model_kwargs` becomes the field; given twice, it is refused."""
    with pytest.warns(UserWarning, match=f"'{name}' is a field of OpenAI: moved"):
        llm = new_llm(model_kwargs={name: value, "user": "me"})
    assert getattr(llm, field) == value
    assert llm.model_kwargs == {"user": "me"}
    with pytest.raises(ValidationError, match=f"'{name}' is given twice"):
        new_llm(**{name: value}, model_kwargs={name: value})


# Chat models.


@pytest.mark.parametrize(
    "model",
    [
        *("gpt-3.5-turbo", "gpt-3.5-turbo-0125", "gpt-4", "gpt-4o-mini", "gpt-4.1"),
        *("gpt-5", "gpt-6.1-sol", "o1", "o3-mini", "chatgpt-4o-latest"),
        "ft:gpt-4o-mini-2024-07-18:org::id",
    ],
)
def test_a_chat_model_is_made_an_openai_chat(new_llm: NewLLM, model: str) -> None:
    """`OpenAI` with a chat model's name gives an `OpenAIChat`, and says why."""
    for name in ("model", "model_name"):
        with pytest.warns(UserWarning, match="construct OpenAIChat") as caught:
            llm = new_llm(OpenAI, **{name: model}, temperature=0.1)
        assert len(caught) == 1
        assert type(llm) is OpenAIChat
        assert (llm.model_name, llm.temperature) == (model, 0.1)
    assert llm.invoke("hi") == STUB_TEXT


@pytest.mark.parametrize(
    "model",
    [
        *("gpt-3.5-turbo-instruct", "gpt-3.5-turbo-instruct-0914", "davinci-002"),
        *("ft:babbage-002:org::id", "mistral-7b", "oasis", "gpt-oss-20b"),
    ],
)
def test_other_models_keep_their_class(new_llm: NewLLM, model: str) -> None:
    """Models that `/v1/completions` may serve, and deployments, keep their class."""
    assert type(new_llm(OpenAI, model=model)) is OpenAI
    assert type(new_llm(AzureOpenAI, model="gpt-4")) is AzureOpenAI


# What is shown, and saved.


@pytest.mark.parametrize(
    "secrets",
    [
        {"api_key": KEY},
        {"api_key": SecretStr(KEY)},
        {"default_headers": {"authorization": f"Bearer {KEY}"}},
        {"openai_proxy": f"http://me:{KEY}@127.0.0.1:1"},
    ],
    ids=["str", "SecretStr", "headers", "proxy"],
)
def test_no_key_is_shown(new_any: NewLLM, secrets: dict[str, Any]) -> None:
    """No text of a model, its clients, or what LangChain saves or traces has a key."""
    llm = new_any(**secrets)
    clients = (llm.client, llm.async_client, llm.client.settings)
    for shown in (repr(llm), str(llm), dumps(llm), str(llm.asdict()), repr(clients)):
        assert KEY not in shown
    # A wrong field beside the key does not bring it into the message.
    for wrong in ({"n": 0}, {"batch_size": 0}, {"streaming": "who knows"}):
        with pytest.raises(ValidationError) as caught:
            new_any(**secrets, **wrong)
        assert KEY not in str(caught.value)


def test_what_langchain_saves(new_completions: NewLLM) -> None:
    """Name and fields are saved, no secret, and that shared objects are missing."""
    assert not OpenAIChat.is_lc_serializable()
    shared: dict[str, Any] = {
        "budget": RetryBudget(),
        "breaker": CircuitBreaker(),
        "clock": FakeClock(),
    }
    shared |= {"store": MemoryStore(), "rate_limit": RateLimit(max_concurrency=3)}
    shared["rate_limiter"] = InMemoryRateLimiter()
    fields: dict[str, Any] = {"temperature": 0.1, "trace_attempts": False, **shared}
    fields["retry_policy"] = RetryPolicy(max_retries=1, deadline=9.0)
    headers = {"x-team": "a", "Authorization": "b", "x-api-key": "c"}
    proxy = "http://me:password@127.0.0.1:1/"
    fields |= {"default_headers": headers, "openai_proxy": proxy}
    llm = new_completions(**fields, organization="org")
    saved = json.loads(dumps(llm))
    assert saved["id"] == ["langchain", "llms", "openai", type(llm).__name__]
    kwargs = saved["kwargs"]
    assert (kwargs["temperature"], kwargs["openai_organization"]) == (0.1, "org")
    assert kwargs["openai_api_key"]["type"] == "secret"
    assert kwargs["default_headers"] == {"x-team": "a"}
    assert kwargs["openai_proxy"] == "http://127.0.0.1:1/"
    assert not {"client", "async_client"} & kwargs.keys()
    assert RetryPolicy(**kwargs["retry_policy"]) == fields["retry_policy"]
    assert kwargs["trace_attempts"] is False
    assert {kwargs[name]["type"] for name in shared} == {"not_implemented"}


def test_a_model_can_be_saved_to_a_file(new_any: NewLLM, tmp_path: Path) -> None:
    """What `save` writes makes an equal model, given address and key again."""
    file = tmp_path / "model.json"
    fields = {"temperature": 0.1, "max_tokens": 10, "logit_bias": {"1": 2.0}}
    llm = new_any(**fields)
    llm.save(file)
    saved = json.loads(file.read_text())
    assert KEY not in file.read_text()
    assert saved.pop("_type") == llm.asdict()["_type"]
    assert new_any(**saved) == llm


def test_what_identifies_a_model(any_model: Any, new_llm: NewLLM) -> None:
    """Caches and traces tell models apart by their parameters, not by their clients."""
    first, second = new_llm(any_model), new_llm(any_model, temperature=0.11)
    assert first.asdict() == new_llm(any_model, budget=RetryBudget()).asdict()
    assert first.asdict() != second.asdict()
    assert second.asdict()["model_name"] == second.model_name
    types = {"OpenAIChat": "openai-chat", "AzureOpenAI": "azure"}
    assert second.asdict()["_type"] == types.get(any_model.__name__, "openai")


def test_configurable_fields_reach_the_client(every: Env) -> None:
    """A field that LangChain configures for a call holds for its client as well."""
    llm = every.new(organization="first").configurable_fields(
        openai_organization=ConfigurableField(id="organization"),
        max_retries=ConfigurableField(id="max_retries"),
    )
    every.invoke(llm, "hi")
    every.invoke(llm, "hi", config={"configurable": {"organization": "second"}})
    sent = [
        request.headers["openai-organization"] for request in every.gateway.requests
    ]
    assert sent == ["first", "second"]


def test_a_policy_may_be_plain_data(new_llm: NewLLM) -> None:
    """A policy from a configuration file is a policy, and checked like one."""
    llm = new_llm(retry_policy={"max_retries": 4, "deadline": 9.0})
    assert llm.retry_policy == RetryPolicy(max_retries=4, deadline=9)
    assert llm.max_retries == 4
    with pytest.raises(ValidationError, match="deadline must be"):
        new_llm(retry_policy={"deadline": -1})


# Tokens.


@pytest.fixture
def encoding(monkeypatch: pytest.MonkeyPatch) -> tiktoken.Encoding:
    """A real encoding, small enough to be written here, in place of `cl100k_base`."""
    letters = {bytes([number]): number for number in range(256)}
    made = tiktoken.Encoding(
        "cl100k_base",
        pat_str=r"\w+|\s+|\W",
        mergeable_ranks={**letters, b"hi": 256},
        special_tokens={"<|end|>": 257},
    )
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "cl100k_base", made)
    return made


@pytest.mark.usefixtures("encoding")
def test_tokens_are_counted(new_any: NewLLM) -> None:
    """The tokens of a model, or of the one that stands in for it, are counted."""
    llm = new_any(model="davinci", tiktoken_model_name="gpt-4")
    assert llm.get_token_ids("hi hi") == [256, 32, 256]
    assert llm.get_num_tokens("hi hi") == 3
    unknown = new_any(model="unheard-of")
    assert unknown.get_num_tokens("hi hi") == 3


@pytest.mark.usefixtures("encoding")
def test_special_tokens_are_refused_or_allowed(new_llm: NewLLM) -> None:
    """`allowed_special` and `disallowed_special` decide on special tokens in a text."""

    def count(**fields: Any) -> list[int]:
        llm = new_llm(tiktoken_model_name="gpt-4", **fields)
        return [*llm.get_token_ids("<|end|>")]

    with pytest.raises(ValueError, match="disallowed special token"):
        count()
    assert count(allowed_special="all") == count(allowed_special={"<|end|>"}) == [257]
    assert len(count(disallowed_special=())) == len("<|end|>")


def test_without_tiktoken_the_message_says_what_to_do(
    new_llm: NewLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without tiktoken, which is an extra, counting says how to get it."""
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ImportError, match=r"pip install .*\[tiktoken\]"):
        new_llm().get_token_ids("hi")


def test_max_tokens_may_fill_the_context(env: Env) -> None:
    """`max_tokens=-1` asks for what is left behind the prompt, for a stream as well."""
    llm = env.new(max_tokens=-1, custom_get_token_ids=lambda text: [1] * len(text))
    env.invoke(llm, "four")
    env.stream(llm, "four")
    assert [r.payload["max_tokens"] for r in env.gateway.requests] == [4092, 4092]
    assert llm.max_tokens_for_prompt("four") == 4092
    env.invoke(llm, "x" * 5000)  # The provider says that it does not fit.
    assert env.gateway.requests[-1].payload["max_tokens"] == 1
    with pytest.raises(ValueError, match=r"max_tokens=-1 fills .* there are 2"):
        env.generate(llm, ["a", "b"])


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("gpt-3.5-turbo-instruct", 4_096),
        ("davinci-002", 16_384),
        ("ft:davinci-002:org::id", 16_384),
        ("davinci:ft-org:name", 2_049),
        ("gpt-4o", 128_000),
        ("gpt-4o-2024-08-06", 128_000),
        ("gpt-4.1-mini-2025-04-14", 1_047_576),
        ("gpt-5", 400_000),
        ("gpt-6.1-sol", 1_050_000),
    ],
)
def test_context_sizes(new_llm: NewLLM, model: str, size: int) -> None:
    """Known models, their snapshots and fine-tunes have their context size."""
    assert BaseOpenAI.modelname_to_contextsize(model) == size
    assert new_llm(BaseOpenAI).max_context_size == 4_096
    with pytest.raises(ValueError, match=r"Unknown model: 'nobody'.*set max_tokens"):
        BaseOpenAI.modelname_to_contextsize("nobody")
