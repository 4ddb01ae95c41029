"""`with_structured_output`: how each route is asked, and what answers are trusted."""

import asyncio
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage
from langchain_core.tools import tool
from langchain_core.utils.json import parse_json_markdown
from pydantic import BaseModel, Field, RootModel
from pydantic.v1 import BaseModel as OldBaseModel

from langchain_retryrouter import (
    ContentFilterError,
    LengthLimitError,
    RejectedAnswerError,
    RetryRouter,
    UnavailableError,
)
from langchain_retryrouter.testing import Answer, FaultyGateway, Status, ToolCall
from tests.support.models import chat_openai
from tests.unit_tests.conftest import Twin

from . import attempts
from .anthropic_wire import ANSWER, chat_anthropic


class Person(BaseModel):
    """A person."""

    name: str
    born: int = Field(ge=0)


class Numbers(RootModel[list[int]]):
    """A schema that is no object, in which langchain-openai misses a key."""


class PersonDict(TypedDict):
    """A person."""

    name: str
    born: int


class OldPerson(OldBaseModel):
    """A person, for pydantic 1."""

    name: str


SCHEMA = {**Person.model_json_schema(), "title": "Person"}
FITS = '{"name": "Ada", "born": 1815}'
ADA = Person(name="Ada", born=1815)
MISFITS = [
    '{"name": "Ada"}',
    '{"name": "Ada", "born": "soon"}',
    '{"name": "Ada", "born": -1}',
    '{"name": "Ada", "bo',
    "Ada Lovelace, born 1815",
    "[]",
]
WAYS = ["invoke", "ainvoke", "stream", "astream"]


def ask(way: str, chain: Any, prompt: str = "Who?") -> Any:
    """The one result of a chain, asked in one of the public ways."""
    twin = Twin(way.startswith("a"))
    if way.endswith("invoke"):
        return twin.invoke(chain, prompt)
    is_batch = way.endswith("batch")
    (result,) = twin.batch(chain, [prompt]) if is_batch else twin.stream(chain, prompt)
    return result


@pytest.fixture
def backup() -> Iterator[FaultyGateway]:
    with FaultyGateway() as gateway:
        gateway.always(Answer(FITS))
        yield gateway


router_of = functools.partial(attempts.router_of, retries=2)


@dataclass
class Env:
    """Routers over one provider or two, which are asked in one of the public ways."""

    way: str
    gateway: FaultyGateway
    backup: FaultyGateway

    def router(self, *, both: bool = False, **fields: Any) -> RetryRouter:
        gateways = [self.gateway, self.backup] if both else [self.gateway]
        return router_of(*map(chat_openai, gateways), **fields)

    def ask(self, chain: Any) -> Any:
        return ask(self.way, chain)


@pytest.fixture(params=WAYS)
def env(
    request: pytest.FixtureRequest, gateway: FaultyGateway, backup: FaultyGateway
) -> Env:
    """Run the test in each way."""
    return Env(request.param, gateway, backup)


def sent_to(gateway: FaultyGateway) -> list[dict[str, Any]]:
    return [json.loads(request.body) for request in gateway.requests]


def call_of(args: str, name: str = "Person") -> Answer:
    return Answer(text="", tool_calls=(ToolCall(name, args, id="call_1"),))


CLAUDES_TEXT = {"type": "text", "text": FITS}
CLAUDES_CALL = {
    "type": "tool_use",
    "id": "t",
    "name": "Person",
    "input": json.loads(FITS),
}


# --- how routes are asked ---


def test_each_route_is_asked_in_its_own_way(env: Env) -> None:
    """By the provider's format where the profile says so, by a tool otherwise."""
    env.gateway.always(Status(401))
    env.backup.always(call_of(FITS))
    by_tool = chat_openai(env.backup).model_copy(update={"profile": {}})
    router = router_of(chat_openai(env.gateway), by_tool)

    assert env.ask(router.with_structured_output(Person)) == ADA

    (native,), (tools,) = sent_to(env.gateway), sent_to(env.backup)
    assert native["response_format"]["json_schema"]["name"] == "Person"
    assert "tools" not in native
    assert tools["tool_choice"]["function"]["name"] == "Person"
    assert "response_format" not in tools


@pytest.mark.parametrize("has_format", [True, False])
def test_anthropic_is_asked_in_its_own_way(
    gateway: FaultyGateway, *, has_format: bool
) -> None:
    """Its format is `output_config`, and its tool must be called."""
    model = chat_anthropic(gateway)
    model.profile = {"structured_output": has_format}
    block = CLAUDES_TEXT if has_format else CLAUDES_CALL
    gateway.respond("/v1/messages", {**ANSWER, "content": [block]})

    assert ask("invoke", router_of(model).with_structured_output(Person)) == ADA
    (sent,) = sent_to(gateway)
    assert ("output_config" in sent) is has_format
    assert ("tool_choice" in sent) is not has_format


@pytest.mark.parametrize("name", ["Person", "ContentPolicy", "billing", "daily_limit"])
def test_a_provider_that_refuses_the_format_is_asked_by_a_tool(
    env: Env, name: str
) -> None:
    """The format was not the caller's idea; later calls begin with the tool."""
    no = f"Invalid schema for response_format '{name}': In context=()"
    env.gateway.script(Status(400, message=no), call_of(FITS), call_of(FITS))
    chain = env.router().with_structured_output(Person)

    with pytest.warns(UserWarning, match="Invalid schema"):
        assert env.ask(chain) == ADA
    assert env.ask(chain) == ADA

    assert ["tools" in sent for sent in sent_to(env.gateway)] == [False, True, True]


@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_a_method_holds_for_every_route_or_is_refused(
    gateway: FaultyGateway, method: Any
) -> None:
    """No route is asked in another way than the caller says."""
    router = router_of(chat_openai(gateway), chat_anthropic(gateway))
    if method == "json_mode":
        refused = pytest.raises(ValueError, match="'claude-of-the-tests' cannot")
        with pytest.warns(UserWarning, match="json_mode"), refused:
            router.with_structured_output(Person, method=method)
        router = router_of(chat_openai(gateway))
    gateway.always(call_of(FITS) if method == "function_calling" else Answer(FITS))

    chain = router.with_structured_output(Person, method=method)

    assert ask("invoke", chain) == ADA
    (sent,) = sent_to(gateway)
    assert ("tools" in sent) is (method == "function_calling")


def test_strict_is_honoured_by_every_route_or_refused(gateway: FaultyGateway) -> None:
    """Anthropic's tools can be strict; its `with_structured_output` does not say so."""
    router = router_of(chat_openai(gateway), chat_anthropic(gateway))
    chain = router.with_structured_output(
        Person, method="function_calling", strict=True
    )
    gateway.script(Status(401))
    gateway.respond("/v1/messages", {**ANSWER, "content": [CLAUDES_CALL]})

    assert ask("invoke", chain) == ADA
    first, second = sent_to(gateway)
    assert first["tools"][0]["function"]["strict"] is True
    assert second["tools"][0]["strict"] is True

    with pytest.raises(ValueError, match="of-the-tests' cannot honour"):
        router.with_structured_output(Person, method="json_schema", strict=True)


def test_a_class_of_pydantic_1_is_a_schema_too(env: Env) -> None:
    """As in LangChain's own integrations; what does not fit it is repaired."""
    env.gateway.script(Answer("{}"), Answer('{"name": "Ada"}'))
    chain = env.router().with_structured_output(OldPerson)
    assert env.ask(chain) == OldPerson(name="Ada")
    assert len(env.gateway.requests) == 2


@pytest.mark.parametrize(
    ("schema", "options", "error"),
    [
        (None, {}, "only 'json_mode' goes without a schema"),
        (Person, {"method": "by_hand"}, "method must be one of 'auto'"),
        ({"type": "object"}, {}, "title"),
        (Numbers, {"method": "json_schema"}, "cannot honour method='json_schema'"),
        (Person, {"tools": []}, "takes no 'tools'"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_for_is_refused(
    gateway: FaultyGateway, schema: Any, options: dict[str, Any], error: str
) -> None:
    """Before anything is sent, with the name of what is wrong."""
    router = router_of(chat_openai(gateway))
    with pytest.raises((TypeError, ValueError), match=error):
        router.with_structured_output(schema, **options)


# --- which answers are trusted ---


@pytest.mark.parametrize("way", ["invoke", "astream"])
@pytest.mark.parametrize(
    "schema", [Person, PersonDict, SCHEMA], ids=["pydantic", "typed", "json"]
)
@pytest.mark.parametrize("misfit", MISFITS)
@pytest.mark.parametrize("by_tool", [False, True])
def test_a_model_is_shown_its_mistake_once(
    way: str, gateway: FaultyGateway, schema: Any, misfit: str, *, by_tool: bool
) -> None:
    """An answer that does not fit is retried with the error, shown as fits."""
    if schema is PersonDict and "-1" in misfit:
        return  # A TypedDict has no limits.
    is_call = by_tool and misfit.startswith("{")
    name = "PersonDict" if schema is PersonDict else "Person"
    gateway.script(call_of(misfit, name) if is_call else Answer(misfit))
    gateway.always(call_of(FITS, name) if by_tool else Answer(FITS))
    method: Any = "function_calling" if by_tool else "json_schema"
    router = router_of(chat_openai(gateway))

    found = ask(way, router.with_structured_output(schema, method=method))

    assert dict(found) == json.loads(FITS)
    first, second = sent_to(gateway)
    shown = second["messages"][len(first["messages"]) :]
    if is_call and not misfit.endswith("}"):
        assert shown == []  # A call that is no JSON is a malformed answer.
        return
    roles = ["assistant", "tool"] if is_call else ["assistant", "user"]
    assert [message["role"] for message in shown] == roles
    assert "Fix this" in shown[-1]["content"]


@pytest.mark.parametrize("method", ["auto", "function_calling"])
def test_a_model_that_repeats_its_mistake_is_left(env: Env, method: Any) -> None:
    """Each route gets one repair, and the next one the caller's own prompt only."""
    env.gateway.always(Answer(MISFITS[0]))
    chain = env.router(both=True).with_structured_output(Person, method=method)

    assert env.ask(chain) == ADA

    assert len(env.gateway.requests) == 2
    (sent,) = sent_to(env.backup)
    assert len(sent["messages"]) == 1


def test_a_model_that_was_left_for_its_mistake_is_not_asked_again(env: Env) -> None:
    """Neither route is a last resort for the other, though each has a retry left."""
    env.gateway.always(Answer(MISFITS[0]))
    env.backup.always(Answer(MISFITS[0]))

    with pytest.raises(RejectedAnswerError) as caught:
        env.ask(env.router(both=True).with_structured_output(Person))

    assert (len(env.gateway.requests), len(env.backup.requests)) == (2, 2)
    assert caught.value.is_retryable is False


@pytest.mark.parametrize("way", [*WAYS, "batch", "abatch"])
@pytest.mark.parametrize("include_raw", [False, True])
def test_there_is_never_a_silent_none(
    way: str, gateway: FaultyGateway, *, include_raw: bool
) -> None:
    """If no answer fits, it is an error, or with `include_raw` LangChain's dict."""
    gateway.always(Answer(MISFITS[0]))
    router = router_of(chat_openai(gateway), breaker_settings={"failure_threshold": 1})
    chain = router.with_structured_output(
        PersonDict, method="function_calling", include_raw=include_raw
    )

    if include_raw:
        found = ask(way, chain)
        error = found["parsing_error"]
        assert (found["raw"].text, found["parsed"]) == (MISFITS[0], None)
    else:
        with pytest.raises(OutputParserException) as caught:
            ask(way, chain)
        error = caught.value

    assert isinstance(error, RejectedAnswerError)
    assert "the object has no 'born'" in str(error)
    assert len(gateway.requests) == 2


def test_include_raw_has_the_message_of_a_good_answer(env: Env) -> None:
    """With its attempt log, after a failover; other errors are raised."""
    env.gateway.always(Status(503))
    router = env.router(both=True)
    found = env.ask(router.with_structured_output(Person, include_raw=True))

    assert (found["parsed"], found["parsing_error"]) == (ADA, None)
    log = found["raw"].response_metadata["retryrouter"]
    assert [line["outcome"] for line in log["attempts"]] == ["unavailable"] * 3 + ["ok"]

    failing = env.router()
    with pytest.raises(UnavailableError):
        env.ask(failing.with_structured_output(Person, include_raw=True))


@pytest.mark.parametrize(
    ("cut", "error"),
    [
        (Answer('{"name": "Ad', finish_reason="length"), LengthLimitError),
        (Answer("", finish_reason="content_filter"), ContentFilterError),
    ],
    ids=["length", "filter"],
)
@pytest.mark.parametrize("method", ["json_schema", "json_mode"])
def test_an_object_that_is_cut_is_no_mistake_of_the_models(
    env: Env, method: Any, cut: Answer, error: type[Exception]
) -> None:
    """The route is left: its limit would cut the answer again. A refusal is raised."""
    env.gateway.always(cut)
    chain = env.router().with_structured_output(Person, method=method)
    with pytest.raises(error):
        env.ask(chain)
    assert len(env.gateway.requests) == 1
    if error is LengthLimitError:
        chain = env.router(both=True).with_structured_output(Person, method=method)
        assert env.ask(chain) == ADA


@pytest.mark.parametrize("names_it", [True, False])
def test_accept_judges_the_object_too(env: Env, *, names_it: bool) -> None:
    """It gets the object as a second argument, or as `parsed`."""
    env.gateway.always(Answer('{"name": "Bob", "born": 1815}'))

    def by_place(message: AIMessage, person: Any) -> bool | str:
        assert message.text
        return person.name == "Ada" or f"not {person.name}"

    def by_name(message: AIMessage, parsed: Any = None) -> bool | str:
        return by_place(message, parsed)

    router = env.router(both=True, accept=by_name if names_it else by_place)
    found = env.ask(router.with_structured_output(Person, include_raw=True))

    assert found["parsed"] == ADA
    log = found["raw"].response_metadata["retryrouter"]["attempts"]
    assert [line.get("reason") for line in log] == ["not Bob"] * 3 + [None]


NESTED = {
    "title": "Order",
    "type": "object",
    "required": ["items"],
    "additionalProperties": False,  # But for what `patternProperties` allow.
    "$defs": {
        "item": {
            "type": "object",
            "properties": {"n": {"type": "integer", "maximum": 9}},
            "required": ["n"],
        },
        "a/b": {"type": "number", "exclusiveMinimum": True},
    },
    "patternProperties": {"^x-": {"type": "string"}},
    "properties": {
        "items": {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/item"}},
        "how": {"anyOf": [{"type": "null"}, {"enum": ["post", "van"]}]},
        "code": {"type": "string", "pattern": "^[A-Z]+$", "maxLength": 3},
        "name": {"type": "string", "pattern": r"^\p{L}+$"},  # JavaScript's.
        "sum": {"$ref": "#/$defs/a~1b"},
        "far": {"$ref": "https://example.com/schema"},
        "closed": {"type": "object", "additionalProperties": False},
    },
}


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ('{"items": [{"n": 1}], "how": null, "code": "AB"}', None),
        ('```json\n{"items": [{"n": 1.0}], "how": "van"}\n```', None),
        ('{"items": [{"n": -1' + "0" * 400 + '}], "sum": 1, "far": 1}', None),
        ('{"items": [{"n": 1}], "name": "Zoë", "x-a": "any"}', None),
        ('{"items": [{"n": 1}], "sum": "1"}', "'sum' must be of type number"),
        ('{"items": [{"n": true}]}', "'n' must be of type integer, not True"),
        ('{"items": [{"n": 10}]}', "'n' must have maximum 9"),
        ('{"items": [{}]}', "item 0 of 'items' has no 'n'"),
        ('{"items": []}', "must have minItems 1"),
        ('{"items": [{"n": 1}], "how": "air"}', "must be one of"),
        ('{"items": [{"n": 1}], "code": "ab"}', "must match"),
        ('{"items": [{"n": 1}], "code": "ABCD"}', "maxLength 3"),
        ('{"items": [{"n": 1}], "closed": {"a": 1}}', "may not have 'a'"),
        ('{"items": null}', "'items' must be of type array"),
    ],
)
def test_a_json_schema_is_checked(
    gateway: FaultyGateway, answer: str, problem: str | None
) -> None:
    """LangChain hands on what came; here it must fit the schema."""
    gateway.always(Answer(answer))
    chain = router_of(chat_openai(gateway)).with_structured_output(NESTED)
    if problem is None:
        assert ask("invoke", chain) == parse_json_markdown(answer)
    else:
        with pytest.raises(RejectedAnswerError) as caught:
            ask("invoke", chain)
        assert problem in str(caught.value)


@pytest.mark.parametrize("method", ["json_mode", "json_schema"])
def test_an_endless_nesting_is_an_answer_that_does_not_fit(
    env: Env, method: Any
) -> None:
    """Python's limit of recursion is no error of the caller's."""
    env.gateway.always(Answer("[" * 20_000))
    chain = env.router(both=True).with_structured_output(Person, method=method)
    assert env.ask(chain) == ADA


@pytest.mark.parametrize("form", ["openai", "flat", "anthropic"])
def test_a_tool_is_a_schema_by_its_own_name(env: Env, form: str) -> None:
    """Its parameters may have another title, as pydantic's schemas do."""
    parameters = Person.model_json_schema()
    flat = {"name": "find", "description": "Find one.", "parameters": parameters}
    schema: dict[str, Any] = {
        "openai": {"type": "function", "function": flat},
        "flat": flat,
        "anthropic": {"name": "find", "input_schema": parameters},
    }[form]
    env.gateway.script(call_of(FITS, "find"))
    chain = env.router().with_structured_output(schema, method="function_calling")

    assert env.ask(chain) == json.loads(FITS)
    assert sent_to(env.gateway)[0]["tools"][0]["function"]["name"] == "find"


# --- agents ---


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("strategy", [ToolStrategy(Person), ProviderStrategy(Person)])
def test_an_agents_answer_fits_its_format(
    gateway: FaultyGateway, backup: FaultyGateway, strategy: Any, *, is_async: bool
) -> None:
    """Its tools are called first; a mistake is mended after a failover as well."""

    @tool
    def year_of(name: str) -> int:
        """The year in which somebody was born."""
        return len(name)

    gateway.always(Status(401))
    is_tool = isinstance(strategy, ToolStrategy)
    answers = [call_of(a) if is_tool else Answer(a) for a in (MISFITS[0], FITS)]
    backup.script(call_of('{"name": "Ada"}', "year_of"), *answers)
    router = router_of(chat_openai(gateway), chat_openai(backup))
    agent = create_agent(router, tools=[year_of], response_format=strategy)
    asked: Any = {"messages": [("human", "Who was Ada?")]}

    found = asyncio.run(agent.ainvoke(asked)) if is_async else agent.invoke(asked)

    assert found["structured_response"] == ADA
    assert len(backup.requests) == 3
