"""The list of models: which one is asked next when one of them cannot answer."""

import json
import logging
import pickle
from typing import Any

import pytest
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

from langchain_retryrouter import (
    AuthenticationError,
    GPTRouterModel,
    InvalidRequestError,
    NotFoundError,
    RetryRouterError,
    ServerError,
    StreamInterruptedError,
    UnavailableError,
    UnsupportedOptionError,
)
from langchain_retryrouter.testing import (
    STUB_TEXT,
    Answer,
    Body,
    ErrorEvent,
    FaultyGateway,
    Status,
    Step,
    ToolCall,
    Truncate,
)

from . import frames
from .conftest import GPT_4, WAYS, Env
from .frames import END, event, event_stream, sum_of

NOPE = GPTRouterModel(name="nope", provider_name="chat_openai")
NADA = GPTRouterModel(name="nada", provider_name="chat_openai")
OTHER = GPTRouterModel(name="gpt-4o", provider_name="azure_chat_openai")


def unknown(model: GPTRouterModel) -> ErrorEvent:
    """The gateway's error in a stream; a plain call gets its opaque 500."""
    return ErrorEvent(f"Model with name {model.name} does not exist")


def asked(env: Env) -> list[list[str]]:
    """The models of each request, in their order."""
    return [
        [one["modelName"] for one in sorted(entries, key=lambda one: one["order"])]
        for entries in (request.payload["data"] for request in env.gateway.requests)
    ]


def attempts_of(answer: Any) -> list[tuple[str | None, str]]:
    """Model and outcome of each attempt; None where the model is not known."""
    return [(line["route"], line["outcome"]) for line in frames.attempts_of(answer)]


def test_a_retry_asks_the_next_model_first(env: Env) -> None:
    """The model that failed is put last: the gateway itself would not fail over."""
    env.gateway.always(Status(503), model=GPT_4.name)

    answer = env.ask("invoke", models_priority_list=[GPT_4, OTHER])

    assert answer.response_metadata["provider_name"] == "azure_chat_openai"
    assert attempts_of(answer) == [(None, "unavailable"), ("gpt-4o", "ok")]
    assert asked(env) == [["gpt-4-0613", "gpt-4o"], ["gpt-4o", "gpt-4-0613"]]
    orders = [one["order"] for one in env.gateway.requests[1].payload["data"]]
    assert orders == [1, 2]


def test_failover_can_be_switched_off(env: Env) -> None:
    """With `failover=False` the order stays, and an unknown model ends the call."""
    env.gateway.script(Status(503))
    env.ask("invoke", models_priority_list=[GPT_4, OTHER], failover=False)
    assert [request.model for request in env.gateway.requests] == ["gpt-4-0613"] * 2

    env.gateway.always(unknown(NOPE), model=NOPE.name)
    with pytest.raises(NotFoundError, match="name nope does not exist"):
        env.ask("stream", models_priority_list=[NOPE, OTHER], failover=False)
    assert len(env.gateway.requests) == 3


@pytest.mark.parametrize(
    ("cause", "is_named"),
    [
        ("Model with name gpt-4-0613 does not exist", True),
        ("Provider with name chat_openai does not exist", True),
        ("Stream not supported for provider chat_openai", True),
        ("403 The project has no access to gpt-4-0613", True),
        ("401 Incorrect API key provided", False),
        ("429 You exceeded your current quota", False),
        ("400 This model's maximum context length is 8192 tokens", False),
    ],
)
def test_a_stream_goes_on_at_once_if_only_its_model_cannot_answer(
    env: Env, caplog: pytest.LogCaptureFixture, cause: str, is_named: bool
) -> None:
    """An error of one model or its provider: the next is asked, at once and logged.

    A model that is not named stays in the list, since it may be another one's error.
    """
    env.gateway.always(ErrorEvent(cause), model=GPT_4.name)

    with caplog.at_level(logging.WARNING, "langchain_retryrouter"):
        answer = env.ask("stream", models_priority_list=[GPT_4, OTHER])

    assert answer.content == STUB_TEXT
    rest = [] if is_named else ["gpt-4-0613"]
    assert asked(env) == [["gpt-4-0613", "gpt-4o"], ["gpt-4o", *rest]]
    (first, _), (second, outcome) = attempts_of(answer)
    assert first == ("gpt-4-0613" if is_named else None)
    assert (second, outcome) == ("gpt-4o", "ok")
    assert env.clock.sleeps == [0.0]
    who = "gpt-4-0613" if is_named else "one of gpt-4-0613, gpt-4o"
    assert f"{who} cannot answer: {cause}" in caplog.messages


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_error_that_all_models_have_ends_the_call(env: Env, count: int) -> None:
    """Each model has its turn, also if no error says whose it is, and no second one."""
    env.gateway.always(ErrorEvent("401 Incorrect API key provided"))

    with pytest.raises(AuthenticationError) as caught:
        env.ask("stream", models_priority_list=[GPT_4, OTHER, NOPE][:count])

    firsts = [GPT_4.name, OTHER.name, NOPE.name][:count]
    assert [one[0] for one in asked(env)] == firsts
    assert not caught.value.is_retryable


@pytest.mark.parametrize(
    ("step", "first"),
    [
        (unknown(NOPE), (None, "server_error")),  # Told by an opaque 500.
        (
            Body(404, {}, json.dumps({"message": unknown(NOPE).message})),
            ("nope", "not_found"),
        ),
    ],
    ids=["opaque", "named"],
)
def test_an_unknown_model_does_not_end_a_plain_call(
    env: Env, step: Step, first: tuple[str | None, str]
) -> None:
    """If a model is unknown to the gateway, the next model is asked."""
    env.gateway.always(step, model=NOPE.name)

    answer = env.ask("invoke", models_priority_list=[NOPE, OTHER])

    assert answer.content == STUB_TEXT
    assert attempts_of(answer) == [first, ("gpt-4o", "ok")]


def test_every_unknown_model_is_named(env: Env) -> None:
    """If no model of the list is known, the error names each, and none is repeated.

    The first model of a plain call fails without a cause, so it is asked again.
    """
    env.gateway.always(unknown(NOPE), model=NOPE.name)
    env.gateway.always(unknown(NADA), model=NADA.name)

    with pytest.raises(NotFoundError, match="name nada does not exist") as caught:
        env.ask("stream", models_priority_list=[NOPE, NADA])
    assert caught.value.__notes__ == [
        "routes tried: nope (not_found), nada (not_found)"
    ]
    assert asked(env) == [["nope", "nada"], ["nada"]]

    with pytest.raises(NotFoundError, match="name nope does not exist") as caught:
        env.ask("invoke", models_priority_list=[NOPE, NADA])
    (note,) = caught.value.__notes__
    assert note == (
        "routes tried: nope or another of the list (server_error),"
        " nada (not_found), nope (not_found)"
    )
    assert asked(env)[2:] == [["nope", "nada"], ["nada", "nope"], ["nope"]]


def test_all_models_of_an_unknown_provider_are_left_out(env: Env) -> None:
    """Every model of a provider that the gateway does not know is left out at once."""
    a, b = (GPTRouterModel(name=name, provider_name="nowhere") for name in ("a", "b"))
    env.gateway.script(ErrorEvent("Provider with name nowhere does not exist"))

    env.ask("stream", models_priority_list=[a, b, OTHER])

    assert asked(env) == [["a", "b", "gpt-4o"], ["gpt-4o"]]


def test_the_model_that_is_named_is_left_out(env: Env) -> None:
    """The model that is unknown is not asked again, and the others of the list are."""
    env.gateway.always(unknown(NOPE), model=NOPE.name)
    # The gateway may go on to the second by itself, and find that one unknown.
    for step, *requests in (
        (unknown(NOPE), ["gpt-4o", "nope"], ["gpt-4o"]),
        (Status(503), ["gpt-4o", "nope"], ["nope", "gpt-4o"], ["gpt-4o"]),
    ):
        env.gateway.script(step, model=OTHER.name)
        env.ask("stream", models_priority_list=[OTHER, NOPE])
        assert asked(env)[-len(requests) :] == requests


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (ErrorEvent("400 Invalid value: 'wizard'"), InvalidRequestError),
        (ErrorEvent("422 bad"), InvalidRequestError),
        (ErrorEvent('[{"path":"/messages"}]'), InvalidRequestError),
        (Status(401), AuthenticationError),  # Of the gateway's key.
    ],
    ids=str,
)
def test_an_error_of_the_request_or_its_key_ends_the_call(
    env: Env, step: Step, expected: type[RetryRouterError]
) -> None:
    """A request or a key that is wrong for every model is sent once."""
    env.gateway.always(step)

    with pytest.raises(expected):
        env.ask("stream", models_priority_list=[GPT_4, OTHER])

    assert len(env.gateway.requests) == 1


def test_models_take_turns_until_the_retries_are_used_up(env: Env) -> None:
    """There are at most `max_retries + 1` requests; the note lists the models asked."""
    env.gateway.always(Status(502))

    with pytest.raises(ServerError) as caught:
        env.ask("invoke", models_priority_list=[GPT_4, OTHER], max_retries=2)

    assert [one[0] for one in asked(env)] == ["gpt-4-0613", "gpt-4o", "gpt-4-0613"]
    assert caught.value.__notes__[0] == (
        "routes tried: gpt-4-0613 or another of the list (server_error),"
        " gpt-4o or another of the list (server_error),"
        " gpt-4-0613 or another of the list (server_error)"
    )
    assert caught.value.__notes__[1].endswith("no retries left")


# --- a model that the gateway skips, since its health table says that it is sick ---

SICK = GPTRouterModel(name="gpt-4-32k-0613", provider_name="chat_openai")
SERVED = GPTRouterModel(name="gpt-3.5-turbo-1106", provider_name="chat_openai")
LIST = [SICK, SERVED, OTHER]


@pytest.mark.parametrize("way", WAYS)
def test_the_answer_says_which_model_was_asked(env: Env, way: str) -> None:
    """Log and metadata name the model that answered; the next failure is its own.

    A dated name is that of the listed model. Another call asks a third model next.
    """
    env.gateway.script(Answer(model=f"{SERVED.name}-2024"), Status(503))
    llm = env.llm(models_priority_list=LIST, streaming=way == "streaming invoke")

    first, second = (env.message(way, llm) for _ in range(2))

    assert attempts_of(first) == [(SERVED.name, "ok")]
    assert first.response_metadata["model_name"] == f"{SERVED.name}-2024"
    assert attempts_of(second) == [(SERVED.name, "unavailable"), (OTHER.name, "ok")]
    assert asked(env)[2] == [OTHER.name, SERVED.name, SICK.name]


@pytest.mark.parametrize(
    ("learned", "cause"),
    [
        (True, "401 Incorrect API key provided"),
        (False, f"404 The model `{SERVED.name}` does not exist, or you have no access"),
        (False, f"429 You exceeded your current quota for {SERVED.name}"),
    ],
    ids=["by an answer before", "by the error", "by the error's quota"],
)
def test_a_failure_belongs_to_the_model_that_was_asked(
    env: Env, caplog: pytest.LogCaptureFixture, learned: bool, cause: str
) -> None:
    """Only that model is left out and warned about; another one is asked at once."""
    env.gateway.script(
        *([Answer(model=SERVED.name)] if learned else []), ErrorEvent(cause)
    )
    llm = env.llm(models_priority_list=LIST, max_retries=1)
    if learned:
        env.invoke(llm, "hi")

    answer = env.message("stream", llm)

    assert attempts_of(answer)[0][0] == SERVED.name
    assert attempts_of(answer)[1] == (OTHER.name, "ok")
    assert asked(env)[-1] == [OTHER.name, SICK.name]
    assert f"{SERVED.name} cannot answer: {cause}" in caplog.messages
    assert not any(line.startswith(SICK.name) for line in caplog.messages)


@pytest.mark.parametrize(
    ("cause", "blamed"),
    [
        ("404 The model 'gpt-5' does not exist.", "gpt-5"),
        ("503 gpt-5: overloaded, see gpt-5-mini", "gpt-5"),
        ("503 no such command", None),
        ("503 " + "word" * 100_000, None),
    ],
    ids=["quoted", "before a colon", "a word", "a long word"],
)
def test_an_error_may_name_its_model(env: Env, cause: str, blamed: str | None) -> None:
    """A name is a whole word with a digit; other words say nothing of the list."""
    models = [
        GPTRouterModel(name=name, provider_name="chat_openai")
        for name in ("first", "gpt-5", "command")
    ]
    env.gateway.script(ErrorEvent(cause))

    answer = sum_of(env.stream(env.llm(models_priority_list=models), "hi"))

    assert attempts_of(answer)[0][0] == blamed


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (Status(500), "server_error"),
        (ErrorEvent("503 overloaded"), "unavailable"),
        (ErrorEvent("401 Incorrect API key provided"), "authentication"),
    ],
    ids=["a status", "overloaded", "a wrong key"],
)
def test_no_model_is_blamed_if_it_is_not_known_which_one_failed(
    env: Env, caplog: pytest.LogCaptureFixture, way: str, step: Step, kind: str
) -> None:
    """Of a new model's list the gateway may skip the first: then the second has failed.

    So the only retry asks the last model, which cannot be the one that failed; log,
    error and warning name none.
    """
    for name in (SICK.name, SERVED.name):
        env.gateway.always(step, model=name)

    answer = env.ask(way, models_priority_list=LIST, max_retries=1)

    assert asked(env)[1][0] == OTHER.name
    assert SICK.name in asked(env)[1]
    first, second = frames.attempts_of(answer)
    is_opaque = way == "invoke" and isinstance(step, ErrorEvent)
    assert first["outcome"] == ("server_error" if is_opaque else kind)
    assert first["route"] is None
    assert first["reason"] == f"{SICK.name} or another of the list"
    assert second["route"] == OTHER.name
    assert not any(line.startswith(SICK.name) for line in caplog.messages)


@pytest.mark.parametrize("way", WAYS)
def test_an_error_names_no_model_that_was_perhaps_not_asked(env: Env, way: str) -> None:
    """`route` is None unless the list has one model, or an answer has shown the one."""
    env.gateway.always(Status(503))
    for models, route in (LIST, None), ([SICK], SICK.name):
        with pytest.raises(RetryRouterError) as caught:
            env.ask(way, models_priority_list=models, max_retries=0)
        assert caught.value.route == route


def test_a_pickled_model_does_not_know_which_model_is_asked(env: Env) -> None:
    """It may be loaded on another machine, whose clock shows another time."""
    env.gateway.script(Answer(model=SERVED.name))
    env.gateway.always(Status(503))
    llm = env.llm(models_priority_list=LIST, max_retries=0, clock=None)
    env.invoke(llm, "hi")

    for model, route in (llm, SERVED.name), (pickle.loads(pickle.dumps(llm)), None):
        with pytest.raises(UnavailableError) as caught:
            env.invoke(model, "hi")
        assert caught.value.route == route


def test_a_broken_stream_names_the_model_that_was_asked(env: Env) -> None:
    """The route of the error is the model that the gateway has asked."""
    env.gateway.script(Answer(model=SERVED.name), Truncate(after=2))
    llm = env.llm(models_priority_list=LIST)
    env.invoke(llm, "hi")

    with pytest.raises(StreamInterruptedError) as caught:
        env.stream(llm, "hi")

    assert caught.value.route == SERVED.name


def test_a_model_that_answers_again_is_no_longer_skipped(env: Env) -> None:
    """What an answer has shown holds until another one, but at most for 5 minutes.

    The gateway checks its models as often.
    """
    llm = env.llm(models_priority_list=[SICK, OTHER], max_retries=1)
    for wait, first in ((0, OTHER.name), (301, None)):
        env.gateway.script(Answer(model=OTHER.name), Status(503))
        env.invoke(llm, "hi")
        env.clock.sleep(wait)
        assert attempts_of(env.invoke(llm, "hi"))[0] == (first, "unavailable")

    env.gateway.script(Answer(model=OTHER.name), Answer(model=SICK.name), Status(503))
    env.invoke(llm, "hi")
    env.invoke(llm, "hi")
    assert attempts_of(env.invoke(llm, "hi"))[0] == (SICK.name, "unavailable")


def test_the_name_of_a_deployment_says_nothing_of_the_others(env: Env) -> None:
    """Azure answers with the name of the model behind, which may be listed as well."""
    mine = GPTRouterModel(name="prod", provider_name="azure_chat_openai")
    env.gateway.script(Answer(model="gpt-4-0613-2024"), Status(503))
    llm = env.llm(models_priority_list=[mine, GPT_4])

    assert attempts_of(env.invoke(llm, "hi")) == [("prod", "ok")]
    assert attempts_of(env.invoke(llm, "hi"))[0] == (None, "unavailable")


# --- completion models ---


CLAUDE = GPTRouterModel(name="claude-2", provider_name="anthropic")
INSTRUCT = GPTRouterModel(name="gpt-3.5-turbo-instruct", provider_name="openai")
MISTRAL = GPTRouterModel(name="mistral-7b", provider_name="together_ai")
WEATHER = {
    "type": "function",
    "function": {"name": "get_weather", "parameters": {"type": "object"}},
}
CALL = {"name": "get_weather", "args": {}, "id": "call_1", "type": "tool_call"}
ROUND_TRIP = [
    HumanMessage("The weather?"),
    AIMessage("", tool_calls=[CALL]),
    ToolMessage("sunny", tool_call_id="call_1"),
]
PICTURE = HumanMessage(
    [{"type": "text", "text": "?"}, {"type": "image", "url": "https://a/b.png"}]
)
# What a completion model would not be told: prompt, options of the call, and its name.
LOST: dict[str, tuple[Any, dict[str, Any], str]] = {
    "tools": ("hi", {"tools": [WEATHER]}, "tools"),
    "choice": ("hi", {"tools": [WEATHER], "tool_choice": "any"}, "tools, tool_choice"),
    "functions": ("hi", {"functions": [{"name": "f"}]}, "functions"),
    "result of a tool": (ROUND_TRIP, {}, "tool calls, tool results"),
    "call alone": (ROUND_TRIP[:2], {}, "tool calls"),
    "picture": ([PICTURE], {}, "content blocks"),
    "stop": ("hi", {"stop": ["END"]}, "stop"),
    "JSON": ("hi", {"response_format": {"type": "json_object"}}, "response_format"),
}


@pytest.mark.parametrize("way", ["invoke", "stream"])
@pytest.mark.parametrize("name", LOST)
def test_a_completion_model_is_skipped_if_it_would_not_be_told_all(
    env: Env, caplog: pytest.LogCaptureFixture, way: str, name: str
) -> None:
    """Neither we nor the gateway fail over to it; both logs say why."""
    prompt, options, lost = LOST[name]
    env.gateway.script(Status(503))
    llm = env.llm(models_priority_list=[CLAUDE, GPT_4, INSTRUCT])

    answer = env.message(way, llm, prompt, **options)

    assert answer.content == STUB_TEXT
    assert asked(env) == [["gpt-4-0613"]] * 2
    assert attempts_of(answer) == [
        ("claude-2", "skipped"),
        ("gpt-3.5-turbo-instruct", "skipped"),
        ("gpt-4-0613", "unavailable"),
        ("gpt-4-0613", "ok"),
    ]
    reason = f"a completion model, which is not given {lost}"
    assert frames.attempts_of(answer)[0]["reason"] == reason
    assert f"claude-2 (anthropic) is skipped: it is {reason}" in caplog.messages


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_an_error_names_the_models_if_none_is_left(env: Env, way: str) -> None:
    """A list of completion models only is a clear error, and nothing is sent."""
    prompt, options, lost = LOST["choice"]
    llm = env.llm(models_priority_list=[CLAUDE, INSTRUCT])

    with pytest.raises(UnsupportedOptionError) as caught:
        env.message(way, llm, prompt, **options)

    told = f"is a completion model, which is not given {lost}"
    for model in ("claude-2 (anthropic)", "gpt-3.5-turbo-instruct (openai)"):
        assert f"{model} {told}" in str(caught.value)
    assert not env.gateway.requests


def test_several_answers_of_a_completion_model_are_refused(env: Env) -> None:
    """`n` above 1 would give one answer only."""
    with pytest.raises(UnsupportedOptionError, match="which is not given n"):
        env.ask("invoke", models_priority_list=[CLAUDE], n=2)

    other = env.llm(models_priority_list=[CLAUDE, GPT_4], n=2)
    generations = env.generate(other, [[HumanMessage("hi")]]).generations
    assert len(generations[0]) == 2
    assert asked(env) == [["gpt-4-0613"]]


def test_an_error_of_the_other_models_says_which_was_skipped(env: Env) -> None:
    """If all that can answer fail, the note lists the skipped model as well."""
    env.gateway.always(Status(503))
    llm = env.llm(models_priority_list=[GPT_4, CLAUDE], max_retries=1)

    with pytest.raises(ServerError) as caught:
        env.invoke(llm.bind_tools([WEATHER]), "hi")

    assert "claude-2 (skipped)" in caught.value.__notes__[0]
    assert asked(env) == [["gpt-4-0613"]] * 2


@pytest.mark.parametrize("way", WAYS)
def test_a_plain_prompt_fails_over_to_a_completion_model(
    env: Env, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """Parts of text arrive as one text; an option that is lost is in the log, once."""
    env.gateway.always(Status(503), model=GPT_4.name)
    prompt = [HumanMessage([{"type": "text", "text": one} for one in ("a", "b")])]
    llm = env.llm(
        models_priority_list=[GPT_4, CLAUDE],
        temperature=0,
        streaming=way == "streaming invoke",
    )

    for _ in range(2):
        answer = env.message(way, llm, prompt)
        assert attempts_of(answer)[-1] == ("claude-2", "ok")

    seen = env.gateway.requests[-1].payload["data"][0]["promptParams"]["messages"]
    assert seen == [{"role": "user", "content": "a\nb"}]
    told = "claude-2 (anthropic) is a completion model, which is not given temperature"
    assert caplog.messages.count(told) == 1


def test_the_defaults_are_no_reason_for_a_warning(
    env: Env, caplog: pytest.LogCaptureFixture
) -> None:
    """A completion model alone answers plain prompts, without a word in the log."""
    with caplog.at_level(logging.WARNING):
        assert env.ask("invoke", models_priority_list=[CLAUDE]).content == STUB_TEXT
    assert not caplog.messages


def test_a_model_can_be_said_to_take_messages(env: Env) -> None:
    """`is_chat` of a model replaces what is assumed of its provider."""
    chat = GPTRouterModel(name="claude-3", provider_name="anthropic", is_chat=True)
    llm = env.llm(models_priority_list=[chat], gateway_max_retries=0)

    # The public gateway loses the tools nevertheless, which its answer shows.
    env.gateway.always(Answer("no tools here"))
    with pytest.raises(InvalidRequestError, match="claude-3 answers as a completion"):
        env.invoke(llm.bind_tools([WEATHER]), "hi")

    plain = GPTRouterModel(name="x-1", provider_name="mine", is_chat=False)
    with pytest.raises(UnsupportedOptionError, match=r"x-1 \(mine\) is a completion"):
        env.invoke(env.llm(models_priority_list=[plain]).bind_tools([WEATHER]), "hi")


def test_an_answer_shows_that_a_model_takes_messages(env: Env) -> None:
    """A newer gateway's `anthropic` is a chat model, once an answer has shown it."""
    with FaultyGateway(gptrouter="hosted") as hosted:
        llm = env.llm(models_priority_list=[CLAUDE], gpt_router_api_base=hosted.url)
        with pytest.raises(UnsupportedOptionError):
            env.invoke(llm.bind_tools([WEATHER]), "hi")

        env.invoke(llm, "hi")
        hosted.script(Answer(tool_calls=(ToolCall("get_weather", "{}", id="c"),)))
        answer = env.invoke(llm.bind_tools([WEATHER]), "hi")

    assert [call["name"] for call in answer.tool_calls] == ["get_weather"]


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_an_answer_shows_that_a_model_was_not_given_the_tools(
    env: Env, caplog: pytest.LogCaptureFixture, way: str
) -> None:
    """A provider that is not known: nothing of its answer is used, the next is asked.

    Its updates have `model` and no `finish_reason`. Later calls do not ask it again.
    """
    update = event("update", {"text": "Sunny, I guess", "model": "mistral-7b"})
    env.gateway.always(event_stream(update, END), model=MISTRAL.name)
    llm = env.llm(models_priority_list=[MISTRAL, GPT_4])

    answers = [env.message(way, llm, tools=[WEATHER]) for _ in range(2)]

    assert [answer.content for answer in answers] == [STUB_TEXT] * 2
    assert attempts_of(answers[0]) == [
        ("mistral-7b", "invalid_request"),
        ("gpt-4-0613", "ok"),
    ]
    assert attempts_of(answers[1]) == [("mistral-7b", "skipped"), ("gpt-4-0613", "ok")]
    assert asked(env)[1:] == [["gpt-4-0613"]] * 2
    assert any("mistral-7b cannot answer" in line for line in caplog.messages)

    only = env.llm(models_priority_list=[MISTRAL])
    with pytest.raises(InvalidRequestError, match="without the tools of the request"):
        env.message(way, only, tools=[WEATHER])
