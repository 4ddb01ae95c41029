"""Routes that are not asked, since their models' profiles rule the request out."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)

from langchain_retryrouter import (
    CircuitBreaker,
    ContextLengthError,
    RetryPolicy,
    RetryRouter,
    Route,
)
from langchain_retryrouter._router.preflight import tokens_at_least
from langchain_retryrouter.testing import FaultyGateway
from tests.support.models import gpt_router

from .attempts import Way, ask, every_way

ONCE = RetryPolicy(max_retries=0)
TOOL = {
    "type": "function",
    "function": {"name": "now", "parameters": {"type": "object", "properties": {}}},
}
PDF = "application/pdf"
PNG = {"mime_type": "image/png"}
IMAGE = [HumanMessage([{"type": "image", "url": "https://x/y.png"}])]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}


def fake(name: str, **profile: Any) -> Route:
    """A route whose model says this of itself, and answers with its name."""
    said: Any = profile or None
    model = FakeListChatModel(responses=[name], profile=said)
    return Route(model=model, name=name)


def words(count: int) -> list[BaseMessage]:
    """A prompt of so many tokens, by any tokenizer."""
    return [HumanMessage("word " * count)]


def log_of(routes: list[Route], messages: Any, **options: Any) -> dict[str, Any]:
    """The attempt log of a call, which JSON can say."""
    answer = RetryRouter(routes=routes).invoke(messages, **options)
    return dict(json.loads(json.dumps(answer.response_metadata["retryrouter"])))


def reasons_in(log: dict[str, Any]) -> list[str | None]:
    return [line.get("reason") for line in log["attempts"]]


# --- the prompt ---------------------------------------------------------------------


@every_way
def test_a_prompt_that_is_too_long_goes_to_a_larger_model(way: Way) -> None:
    """Nothing is sent to a model that would refuse it; the log has the numbers."""
    small = fake("small", max_input_tokens=1_000)
    router = RetryRouter(routes=[small, fake("large", max_input_tokens=100_000)])
    for count, route in ((500, "small"), (2_000, "large")):
        *_, last = ask(way, router, words(count))
        log = last.message.response_metadata["retryrouter"]
        assert log["route"] == route
    skipped, asked = log["attempts"]
    assert (skipped["route"], skipped["outcome"]) == ("small", "skipped")
    reason = "the prompt has at least 2,000 tokens, and the model takes 1,000"
    assert skipped["reason"] == reason
    assert "attempt" not in skipped
    assert asked["outcome"] == "ok"


LONG_CALL = {"name": "f", "args": {"t": "word " * 1_200}, "id": "1"}
PROMPTS: dict[str, tuple[list[BaseMessage], str]] = {
    # A profile may be rounded, and the count is a lower bound.
    "within a tenth": (words(1_099), "small"),
    "above a tenth": (words(1_101), "large"),
    # Wherever the text is, and whatever it is written in.
    "system": ([SystemMessage("word " * 1_200), HumanMessage("hi")], "large"),
    "blocks": (
        [HumanMessage([{"type": "text", "text": "word " * 600}, "word " * 600])],
        "large",
    ),
    "tool call": (
        [
            HumanMessage("hi"),
            AIMessage("", tool_calls=[LONG_CALL]),
            ToolMessage("done", tool_call_id="1"),
        ],
        "large",
    ),
    "chinese": ([HumanMessage("你好世界" * 1_000)], "large"),
    "links": ([HumanMessage("https://example.com/a?b=c&d=e " * 300)], "large"),
    # A long text of few tokens, such as a table's rule, rules nothing out.
    **{
        name: ([HumanMessage(text)], "small")
        for name, text in {
            "line": "=" * 9_000,
            "blanks": " " * 9_000,
            "lines": "\n" * 9_000,
            "one letter": "a" * 1_100 * 4,
            "one word": "word" * 1_000,
        }.items()
    },
    # The bytes of an image are not the tokens that it costs.
    "image": (
        [HumanMessage([{"type": "image", "base64": "ab/+" * 9_000} | PNG])],
        "small",
    ),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_all_text_of_a_prompt_counts(name: str) -> None:
    """All text, and nothing else, counts as tokens, as far as that is certain."""
    messages, route = PROMPTS[name]
    routes = [fake("small", max_input_tokens=1_000), fake("large")]
    assert log_of(routes, messages)["route"] == route


@given(st.text(max_size=300))
def test_no_text_has_more_tokens_than_characters(text: str) -> None:
    """So a prompt with fewer characters than the limit is never counted."""
    assert 0 <= tokens_at_least(text) <= len(text)


SCRIPTS = {
    "hindi": "नमस्ते, मेरा नाम जीपीटी-4o है। मैं एक नए प्रकार का"
    " भाषा मॉडल हूँ। आपसे मिलकर अच्छा लगा!",
    "tamil": "வணக்கம், என் பெயர் ஜிபிடி-4o. நான் ஒரு புதிய"
    " வகை மொழி மாடல். உங்களை சந்தித்ததில் மகிழ்ச்சி!",
    "korean": "안녕하세요, 제 이름은 GPT-4o입니다. 저는 새로운"
    " 유형의 언어 모델입니다, 만나서 반갑습니다!",
}


@pytest.mark.parametrize(
    ("tokens", "text"), [*zip((31, 45, 27), SCRIPTS.values(), strict=True)], ids=SCRIPTS
)
def test_no_script_is_counted_as_more_than_it_is(tokens: int, text: str) -> None:
    """OpenAI's own examples of GPT-4o's tokenizer: vowel signs belong to words."""
    assert tokens_at_least(text) <= tokens
    routes = [fake("small", max_input_tokens=tokens * 100), fake("large")]
    assert log_of(routes, [HumanMessage(text * 100)])["route"] == "small"


@every_way
def test_a_prompt_that_no_route_can_hold_ends_at_once(way: Way) -> None:
    """Nothing is sent, and the error has the numbers; LangChain's agents know it."""
    limits = {"small": 1_000, "large": 2_000}
    routes = [fake(name, max_input_tokens=limit) for name, limit in limits.items()]
    router = RetryRouter(routes=routes)
    with pytest.raises(ContextLengthError) as raised:
        ask(way, router, words(5_000))
    error = raised.value
    assert "at least 5,000 tokens" in str(error)
    assert "small 1,000, large 2,000" in str(error)
    assert (error.attempts, error.may_have_run, error.is_retryable) == (0, False, False)
    log = error.attempt_log or {}
    assert log["route"] is None
    assert [line["outcome"] for line in log["attempts"]] == ["skipped", "skipped"]
    assert reasons_in(log) == [
        f"the prompt has at least 5,000 tokens, and the model takes {limit:,}"
        for limit in limits.values()
    ]


@pytest.mark.parametrize(
    "profile",
    [{}, {"max_input_tokens": 0}, {"max_input_tokens": -1}, {"tool_calling": 1}],
)
def test_one_route_in_doubt_is_asked(profile: dict[str, Any]) -> None:
    """Without a profile, or with a strange one, a model may hold any prompt."""
    doubtful = fake("b", **profile)
    routes = [fake("a", max_input_tokens=1_000), doubtful, fake("c")]
    assert log_of(routes, words(5_000))["route"] == "b"


def test_routes_for_several_models_are_asked() -> None:
    """The profile of a router, or of a gateway list, is what all its models can do."""
    small = fake("a", max_input_tokens=1_000)
    inner = RetryRouter(routes=[small, fake("b")], retry_policy=ONCE)
    routes = [Route(model=inner), fake("c")]
    assert log_of(routes, words(5_000))["route"] != "c"
    with FaultyGateway() as server:
        gateway = gpt_router(server, "gpt-4", "gpt-4o", max_retries=0)
        routes = [Route(model=gateway), fake("c")]
        assert log_of(routes, words(20_000))["route"] != "c"
        gateway.close()


def test_a_route_that_cannot_hold_the_prompt_is_no_last_resort() -> None:
    """If the others fail, their error is raised; the prompt is still too long."""

    def fail(_: Any) -> str:
        raise ConnectionError

    router = RetryRouter(
        routes=[fake("small", max_input_tokens=1_000), fake("large")], accept=fail
    )
    with pytest.raises(ConnectionError):
        router.invoke(words(5_000))


def test_a_held_route_that_fits_is_asked_all_the_same() -> None:
    """An open breaker is no reason to ask a model that cannot hold the prompt."""
    breaker = CircuitBreaker()
    large = fake("large").model_copy(update={"breaker": breaker})
    breaker.open_for(3_600)
    routes = [fake("small", max_input_tokens=1_000), large]
    assert log_of(routes, words(5_000))["route"] == "large"


# --- media, tools, schemas ----------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "block"),
    [
        ("image_inputs", {"type": "image", "url": "https://x/y.png"}),
        ("image_inputs", {"type": "image_url", "image_url": {"url": "https://x/y"}}),
        ("image_inputs", {"type": "input_image", "image_url": "https://x/y"}),
        ("image_inputs", {"type": "media", "mime_type": "image/png", "data": "aa"}),
        ("audio_inputs", {"type": "audio", "base64": "aa", "mime_type": "audio/wav"}),
        ("audio_inputs", {"type": "input_audio", "input_audio": {"data": "aa"}}),
        ("video_inputs", {"type": "video", "url": "https://x/y.mp4"}),
        ("pdf_inputs", {"type": "file", "mime_type": "application/pdf", "base64": ""}),
        ("pdf_inputs", {"type": "file", "file": {"filename": "a.PDF"}}),
        (
            "pdf_inputs",
            {"type": "file", "file": {"file_data": f"data:{PDF};base64,aa"}},
        ),
        ("pdf_inputs", {"type": "document", "source": {"media_type": PDF}}),
    ],
    ids=str,
)
def test_media_go_to_a_model_that_reads_them(key: str, block: dict[str, Any]) -> None:
    """In the forms of LangChain, OpenAI, Anthropic and Google."""
    message = HumanMessage([{"type": "text", "text": "What is this?"}, block])
    blind = fake("blind", **{key: False})
    for seeing in (fake("seeing", **{key: True}), fake("seeing")):
        log = log_of([blind, seeing], [message])
        assert log["route"] == "seeing"
        assert reasons_in(log)[0] == f"the model takes no {key.partition('_')[0]}"
    for first in (fake("first", **{key: False}), fake("first", max_input_tokens=9_999)):
        assert log_of([first, blind], [message])["route"] == "first"


def test_a_file_of_an_unknown_kind_rules_nothing_out() -> None:
    """A profile says nothing of spreadsheets."""
    message = HumanMessage([{"type": "file", "file": {"filename": "a.xlsx"}}])
    routes = [fake("a", pdf_inputs=False), fake("b")]
    assert log_of(routes, [message])["route"] == "a"


@pytest.mark.parametrize(
    ("key", "options", "what"),
    [
        ("tool_calling", {"tools": [TOOL]}, "tools"),
        ("structured_output", {"response_format": SCHEMA}, "schema"),
    ],
)
def test_tools_and_schemas_go_to_a_model_that_takes_them(
    key: str, options: dict[str, Any], what: str
) -> None:
    """Whether they are of the call, or of the route; all that a model lacks is told."""
    without = fake("without", image_inputs=False, **{key: False})
    routes = [without, fake("with", **{key: True})]
    assert log_of(routes, "hi")["route"] == "without"
    log = log_of(routes, IMAGE, **options)
    assert log["route"] == "with"
    assert reasons_in(log)[0] == f"the model takes no image and no {what}"
    own = without.model_copy(update={"options": options})
    assert reasons_in(log_of([own, fake("b")], "hi"))[0] == f"the model takes no {what}"


def test_nothing_is_skipped_where_nothing_fits() -> None:
    """A profile may be mistaken: with no route left, all are asked in their order."""
    routes = [fake("a", image_inputs=False), fake("b", max_input_tokens=1_000)]
    log = log_of(routes, [*words(5_000), *IMAGE])
    assert log["route"] == "a"
    assert len(log["attempts"]) == 1


# --- explain ------------------------------------------------------------------------


def test_explain_shows_tiers_and_what_is_skipped() -> None:
    """Before a call, one sees who shares the load and who is left out."""
    routes = [
        fake("east").model_copy(update={"tier": 0, "weight": 2.0}),
        fake("west").model_copy(update={"tier": 0}),
        fake("small", max_input_tokens=1_000),
    ]
    router = RetryRouter(routes=routes)
    table = str(router.explain())
    assert "tier 0, weight 2" in table
    assert "tier 0, weight 1" in table
    assert "skipped" not in table
    worst = router.explain(input_tokens=2_000, output_tokens=10)
    assert "skipped: the model takes 1,000 tokens" in str(worst)
    assert [cost.requests for cost in worst.routes][-1] == 0
