"""Options of a call: how they reach the provider and the gateway, or are refused."""

from enum import Enum
from typing import Any

import pytest
from gpt_router.models import (
    ExtendedThinking,
    GPTRouterMetadata,
    SearchContextSize,
    ThinkingType,
    UserLocation,
    UserLocationApproximate,
    WebSearchOptions,
)
from langchain_core.runnables import ConfigurableField

from langchain_retryrouter import (
    CircuitBreaker,
    CircuitOpenError,
    RetryBudget,
    RetryPolicy,
    RetryRouter,
    UnavailableError,
    UnsupportedOptionError,
)
from langchain_retryrouter.testing import STUB_TEXT, Status

from .conftest import GPT_4, OTHER, WAYS, Env


@pytest.mark.parametrize("stream", [True, False])
def test_langchains_stream_option_chooses_the_method(env: Env, *, stream: bool) -> None:
    """`stream` is LangChain's own option, of `GPTRouter` and of a router over it."""
    for model in (env.llm(), RetryRouter(routes=[env.llm()])):
        assert model.bind(stream=stream).invoke("hi").text == STUB_TEXT
        assert env.gateway.requests[-1].json["stream"] is stream


# --- retries ---


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("fields", "requests"),
    [
        ({}, 5),
        ({"max_retries": 0}, 1),
        ({"max_retries": 1}, 2),
        ({"retry_policy": RetryPolicy(max_retries=2)}, 3),
        ({"retry_policy": {"max_retries": 3}}, 4),
    ],
)
def test_max_retries_counts_retries(
    env: Env, fields: dict[str, Any], requests: int, way: str
) -> None:
    """`max_retries`, or that of the policy, is how many requests follow the first."""
    env.gateway.always(Status(503))

    with pytest.raises(UnavailableError):
        env.ask(way, **fields)

    assert len(env.gateway.requests) == requests
    assert env.llm(**fields).max_retries == requests - 1


@pytest.mark.parametrize(
    ("fields", "sent"),
    [
        ({}, 0),
        ({"max_retries": 0}, None),
        ({"retry_policy": RetryPolicy(max_retries=0)}, None),
        ({"gateway_max_retries": 2}, 2),
        ({"gateway_max_retries": 2, "max_retries": 0}, 2),
        ({"gateway_max_retries": 0, "max_retries": 0}, 0),
    ],
)
def test_the_gateway_retries_only_if_the_model_does_not(
    env: Env, fields: dict[str, Any], sent: int | None
) -> None:
    """The gateway is asked for no retries unless ours are off, or as set."""
    for way in WAYS:
        env.ask(way, **fields)

    for request in env.gateway.requests:
        assert request.payload.get("maxRetries") == sent


def test_a_shared_budget_and_breaker_are_drawn_from(env: Env) -> None:
    """Models with one budget and one breaker share their state."""
    env.gateway.always(Status(503))
    budget = RetryBudget(capacity=28)
    for way, requests in (("invoke", 3), ("stream", 4)):  # Two retries in all.
        with pytest.raises(UnavailableError) as caught:
            env.ask(way, budget=budget)
        assert caught.value.__notes__[-1].endswith("retry budget empty")
        assert len(env.gateway.requests) == requests

    breaker = CircuitBreaker(failure_threshold=2)
    for _ in range(2):  # A call counts once, however many of its attempts fail.
        with pytest.raises(UnavailableError):
            env.ask("invoke", breaker=breaker, max_retries=0)
    with pytest.raises(CircuitOpenError, match="nothing was sent"):
        env.ask("stream", breaker=breaker)
    assert len(env.gateway.requests) == 6


# --- options of the provider ---


def sent(env: Env) -> dict[str, Any]:
    """The provider's options of the last request, without the messages."""
    parameters = env.gateway.requests[-1].parameters
    return {name: value for name, value in parameters.items() if name != "messages"}


def test_the_calls_options_win(env: Env) -> None:
    """Fields, then `model_kwargs`, then the call's own options: the last one wins."""
    kwargs = {"top_p": 0.2, "max_tokens": 5, "seed": 5}
    llm = env.llm(temperature=0.1, user="ann", raw_event=True, model_kwargs=kwargs)
    assert llm.model_kwargs == {**kwargs, "user": "ann", "raw_event": True}

    env.invoke(llm, "hi", top_p=0.3, user="bob")

    assert sent(env) == {
        "temperature": 0.1,
        "top_p": 0.3,
        "max_tokens": 5,
        "n": 1,
        "seed": 5,
        "user": "bob",
        "raw_event": True,
    }


SAMPLING: dict[str, Any] = {
    "top_p": 0.5,
    "frequency_penalty": 0.1,
    "presence_penalty": -0.1,
    "stop": ["END"],
    "reasoning_effort": "low",
    "thinking": {"type": "enabled", "budget_tokens": 2048},
    "web_search_options": {"search_context_size": "low"},
    "output_config": {"effort": "high"},
}


def test_every_field_of_the_provider_is_sent(env: Env) -> None:
    """A field that is set is sent under its own name, unless the call has another."""
    options = {"stop": ["stub"], "top_p": 1, "reasoning_effort": "high"}
    for fields, own in ((SAMPLING, {}), (SAMPLING, options), ({}, {})):
        env.invoke(env.llm(**fields), "hi", **own)
        told = sent(env)
        assert {name: told[name] for name in SAMPLING if name in told} == {
            **fields,
            **own,
        }


def test_stop_is_sent_and_cuts(env: Env) -> None:
    """`stop` reaches the provider, the answer ends before it; the call's own wins."""
    for fields in ({}, {"stop": ["from"]}, {"model_kwargs": {"stop": ["from"]}}):
        llm = env.llm(**fields)
        assert env.invoke(llm, "hi", stop=["stub"]).content == "Hello from the "
    assert env.invoke(env.llm().bind(stop=["from"]), "hi").content == "Hello "

    stops = [request.parameters["stop"] for request in env.gateway.requests]
    assert stops == [*[["stub"]] * 3, ["from"]]


def test_max_tokens_none_is_no_limit(env: Env) -> None:
    """`max_tokens=None` is not sent: the gateway would make 0 of a null."""
    env.invoke(env.llm(max_tokens=None), "hi")
    env.stream(env.llm(), "hi", max_tokens=None)

    for request in env.gateway.requests:
        assert "max_tokens" not in request.parameters


NOT_JSON = "cannot be written as JSON"
UNSUPPORTED: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    *(
        ({}, {option: 1}, f"'{option}'")
        for option in ("timeout", "maxRetries", "max_retries", "of_mine")
    ),
    *(
        ({"model_kwargs": {"of_mine": odd}}, {}, NOT_JSON)
        for odd in (float("nan"), ..., {1, 2})
    ),
]
CONTRADICTIONS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({}, {"model": "gpt-5"}, "model='gpt-5' is not in models_priority_list"),
    ({}, {"models_priority_list": []}, "at least one"),
    ({}, {"models_priority_list": ["gpt-4o"]}, "must be a list of GPTRouterModel"),
]


@pytest.mark.parametrize("row", [*UNSUPPORTED, *CONTRADICTIONS], ids=str)
def test_options_that_no_call_can_have_are_refused(env: Env, row: Any) -> None:
    """Settings of the model, unknown options, contradictions: nothing is sent."""
    fields, options, told = row
    error = UnsupportedOptionError if row in UNSUPPORTED else ValueError
    for call in (env.invoke, env.stream):
        with pytest.raises(error, match=told):
            call(env.llm(**fields), "hi", **options)

    assert env.gateway.requests == []


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("gateway_metadata", "x", "must be a dict, not 'x'"),
        ("gateway_metadata", [("a", 1)], r"must be a dict, not \[\('a', 1\)\]"),
        ("tag", 5, "must be a string, not 5"),
        ("user_id", 0, "must be a string, not 0"),
        ("history_id", ["h"], r"must be a string, not \['h'\]"),
        ("app_id", b"a", "must be a string, not b'a'"),
    ],
)
@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_wrong_metadata_of_a_call_is_refused_by_name(
    env: Env, way: str, option: str, value: Any, told: str
) -> None:
    """What is for the gateway itself is checked as the fields of the model are."""
    with pytest.raises(UnsupportedOptionError, match=f"`{option}` {told}"):
        env.message(way, env.llm(tag="of the model"), **{option: value})
    assert env.gateway.requests == []


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("reasoning_effort", "huge", "'high'"),
        ("thinking", {"type": "maybe"}, "'enabled' or 'disabled'"),
        ("thinking", "yes", "valid dictionary"),
        ("web_search_options", {"search_context_size": "vast"}, "'medium'"),
        ("web_search_options", {"user_location": 5}, "valid dictionary"),
        ("tool_choice", 5, "valid string, or Input should be a valid dictionary"),
        ("response_format", "json", "valid dictionary"),
        ("parallel_tool_calls", "perhaps", "valid boolean"),
        ("temperature", "hot", "valid number"),
        ("temperature", "x" * 100_000, "valid number"),
        ("max_tokens", 1.5, "valid integer"),
        ("stop", [5], "valid string"),
        ("output_config", [1], "valid dictionary"),
    ],
)
def test_a_wrong_value_is_refused_by_name(
    env: Env, option: str, value: Any, told: str
) -> None:
    """A value that the gateway does not take is refused with those that it takes."""
    with pytest.raises(UnsupportedOptionError) as caught:
        env.invoke(env.llm(), "hi", **{option: value})

    if len(repr(value)) < 100:
        assert str(caught.value).startswith(f"`{option}` cannot be {value!r}: ")
    assert told in str(caught.value)
    assert len(str(caught.value)) < 500
    assert isinstance(caught.value, ValueError)


class Effort(Enum):
    """An enum whose members are not strings."""

    HIGH = "high"


BERLIN = {"type": "approximate", "approximate": {"city": "Berlin"}}
SEARCH = {"search_context_size": "low", "user_location": BERLIN, "of_mine": [1]}
SDK_SEARCH = WebSearchOptions(
    search_context_size=SearchContextSize.LOW,
    user_location=UserLocation(
        type="approximate", approximate=UserLocationApproximate(city="Berlin")
    ),
)


@pytest.mark.parametrize(
    ("option", "value", "on_the_wire"),
    [
        ("reasoning_effort", Effort.HIGH, "high"),
        (
            "thinking",
            {"type": ThinkingType.ENABLED, "budget_tokens": 2048, "of_mine": 1},
            {"type": "enabled", "budget_tokens": 2048, "of_mine": 1},
        ),
        (
            "thinking",
            ExtendedThinking(type=ThinkingType.ENABLED),
            {"type": "enabled", "budget_tokens": 1024},
        ),
        ("web_search_options", SEARCH, SEARCH),
        (
            "web_search_options",
            SDK_SEARCH,
            {"search_context_size": "low", "user_location": BERLIN},
        ),
        ("logit_bias", {50256: -100}, {"50256": -100}),
        ("of_mine", {"deep": (Effort.HIGH, None)}, {"deep": ["high", None]}),
        ("tool_choice", "required", "required"),
        ("raw_event", False, False),
        ("output_config", {"effort": Effort.HIGH}, {"effort": "high"}),
    ],
)
def test_a_value_is_sent_as_json(
    env: Env, option: str, value: Any, on_the_wire: Any
) -> None:
    """Enums, the SDK's types and options of one's own are sent as JSON, whole."""
    env.ask("invoke", model_kwargs={option: value})

    assert sent(env)[option] == on_the_wire


FUNCTIONS = [{"name": "get_weather", "parameters": {"type": "object"}}]


@pytest.mark.parametrize(
    ("call", "on_the_wire"),
    [
        ("auto", {"functions": FUNCTIONS}),
        ("none", {}),
        (None, {"functions": FUNCTIONS}),
        *[
            (call, {"functions": FUNCTIONS, "function_call": {"name": "get_weather"}})
            for call in ("get_weather", {"name": "get_weather"})
        ],
    ],
)
def test_a_function_call_is_sent_as_the_gateway_takes_it(
    env: Env, call: Any, on_the_wire: Any
) -> None:
    """`function_call` is not sent as text, to which the gateway would answer 500."""
    options = {"functions": FUNCTIONS, "function_call": call}

    env.invoke(env.llm(), "hi", **options)

    told = sent(env)
    assert {name: told[name] for name in options if name in told} == on_the_wire
    assert options == {"functions": FUNCTIONS, "function_call": call}


# --- options of the gateway ---


@pytest.mark.parametrize(("seconds", "sent"), [(2.5, 2500), (0.0001, 1), (None, None)])
def test_the_gateways_timeout_is_in_milliseconds(
    env: Env, seconds: float | None, sent: int | None
) -> None:
    """`gateway_timeout` is seconds here and milliseconds on the wire, never 0."""
    env.ask("invoke", gateway_timeout=seconds)

    assert env.gateway.requests[0].payload.get("timeout") == sent


@pytest.mark.parametrize("way", WAYS)
def test_metadata_reaches_the_gateway(env: Env, way: str) -> None:
    """Tag, user, conversation and application are sent as the SDK sends them."""
    env.ask(
        way,
        tag="nightly",
        user_id="u1",
        history_id="h1",
        app_id="a1",
        gateway_metadata={"team": "blue"},
        metadata={"secret": 1},  # LangChain's own, which is not sent.
    )

    [request] = env.gateway.requests
    told = {
        "tag": "nightly",
        "createdByUserId": "u1",
        "historyId": "h1",
        "appId": "a1",
        "metadata": {
            "tag": "nightly",
            "created_by_user_id": "u1",
            "history_id": "h1",
            "appId": "a1",
            "team": "blue",
        },
    }
    assert {name: request.payload[name] for name in told} == told
    assert not {"tag", "user_id", "history_id"} & set(request.parameters)


def test_a_calls_metadata_is_merged_with_the_models_and_the_clients(env: Env) -> None:
    """What a call does not set stays as the model or the client has it."""
    other = env.llm()
    other.client.additional_metadata = GPTRouterMetadata(appId="a1", tag="client")
    llm = env.llm(client=other.client, tag="nightly", user_id="u1")

    bound = llm.bind(user_id="u2")
    env.invoke(bound, "hi", {"metadata": {"other": 2}}, history_id="h2")

    assert env.gateway.requests[0].payload["metadata"] == {
        "tag": "nightly",
        "created_by_user_id": "u2",
        "history_id": "h2",
        "appId": "a1",
    }


# --- the models of a call ---


def test_a_call_can_have_its_own_models(env: Env) -> None:
    """By `bind`, option, name or config: the list of the call wins."""
    llm = env.llm(models_priority_list=[GPT_4, OTHER])
    configurable = llm.configurable_fields(
        models_priority_list=ConfigurableField(id="models")
    )
    as_dicts = [{"name": "gpt-4o", "provider_name": "chat_openai"}]

    answers = [
        env.invoke(llm.bind(models_priority_list=[OTHER]), "hi"),
        env.invoke(llm, "hi", models_priority_list=as_dicts),
        env.invoke(llm, "hi", model="gpt-4o"),
        env.invoke(configurable, "hi", {"configurable": {"models": as_dicts}}),
    ]

    asked = [
        [one["modelName"] for one in request.payload["data"]]
        for request in env.gateway.requests
    ]
    assert asked == [["gpt-4o"], ["gpt-4o"], ["gpt-4o", "gpt-4-0613"], ["gpt-4o"]]
    assert {a.response_metadata["model_name"] for a in answers} == {"gpt-4o"}
