"""`with_structured_output`: its methods, forms of schemas, and parsing errors."""

from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from langchain_core.messages import AIMessage
from pydantic import BaseModel, Field, ValidationError
from pydantic import v1 as pydantic_v1
from typing_extensions import TypedDict

from langchain_retryrouter import InvalidRequestError
from langchain_retryrouter.testing import Answer, FaultyGateway, ToolCall
from tests.support.rule_responder import RuleResponder

from .conftest import Env, NewModel


class Joke(BaseModel):
    """A joke."""

    setup: str = Field(description="the question")
    rating: int = Field(ge=1, le=10)


class OldJoke(pydantic_v1.BaseModel):
    """A joke."""

    setup: str = pydantic_v1.Field(description="the question")
    rating: int


class JokeDict(TypedDict):
    """A joke."""

    setup: Annotated[str, ..., "the question"]
    rating: int


JSON_SCHEMA = {
    "title": "Joke",
    "description": "A joke.",
    "type": "object",
    "properties": {
        "setup": {"type": "string"},
        "rating": {"type": "integer", "minimum": 1, "maximum": 10},
    },
    "required": ["setup", "rating"],
}
NAMED = {"name": "Joke", "schema": JSON_SCHEMA}
TOOL = {"type": "function", "function": {"name": "Joke", "parameters": JSON_SCHEMA}}
SCHEMAS = [
    pytest.param(Joke, id="pydantic"),
    pytest.param(JokeDict, id="typed-dict"),
    pytest.param(JSON_SCHEMA, id="json-schema"),
]
ASKED = "Tell a joke with setup 'Why?' and rating 7, in JSON"


@pytest.fixture
def gateway() -> Iterator[FaultyGateway]:
    """A hosted gateway whose model answers by rules."""
    with FaultyGateway(answer=RuleResponder(), gptrouter="hosted") as gateway:
        yield gateway


SAID = {"setup": "Why?", "rating": 7}
"""What the rules of the gateway's model answer, as fields of an object or as a dict."""


@pytest.mark.parametrize("way", ["invoke", "stream"])
@pytest.mark.parametrize("schema", [*SCHEMAS, pytest.param(OldJoke, id="pydantic-v1")])
@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_an_answer_is_of_its_schema(
    env: Env, method: Any, schema: Any, way: str
) -> None:
    """Pydantic schemas give objects, and the others dicts, streamed or not."""
    llm = env.llm().with_structured_output(schema, method=method)

    answer = getattr(env, way)(llm, ASKED)
    answer = answer[-1] if way == "stream" else answer

    assert isinstance(answer, schema if schema in (Joke, OldJoke) else dict)
    assert dict(answer) == SAID


@pytest.mark.parametrize("schema", [*SCHEMAS, pytest.param(None, id="none")])
def test_json_mode_leaves_the_schema_to_the_prompt(env: Env, schema: Any) -> None:
    """With `json_mode` the provider is asked for JSON; the parser uses the schema."""
    env.gateway.always(Answer('{"setup": "Why?", "rating": 7}'))

    llm = env.llm().with_structured_output(schema, method="json_mode")
    answer = env.invoke(llm, ASKED)

    assert isinstance(answer, Joke if schema is Joke else dict)
    assert dict(answer) == SAID
    (request,) = env.gateway.requests
    assert request.parameters["response_format"] == {"type": "json_object"}


def test_the_tool_is_forced_and_called_once(env: Env) -> None:
    """With `function_calling` the schema is the only tool, and it must be called."""
    env.invoke(env.llm().with_structured_output(Joke, strict=True), ASKED)

    sent = env.gateway.requests[0].parameters
    assert sent["tool_choice"] == {"type": "function", "function": {"name": "Joke"}}
    assert sent["parallel_tool_calls"] is False
    assert sent["tools"][0]["function"]["strict"] is True
    assert "ls_structured_output_format" not in sent


@pytest.mark.parametrize("strict", [None, True, False])
@pytest.mark.parametrize(
    "schema",
    [
        *SCHEMAS,
        pytest.param(NAMED, id="named"),
        pytest.param({"type": "json_schema", "json_schema": NAMED}, id="openai"),
    ],
)
def test_the_schema_goes_out_in_openais_form(
    env: Env, schema: Any, strict: bool | None
) -> None:
    """With `json_schema` the provider gets a name and the schema."""
    llm = env.llm().with_structured_output(schema, method="json_schema", strict=strict)
    env.invoke(llm, ASKED)

    told = env.gateway.requests[0].parameters["response_format"]
    assert told["type"] == "json_schema"
    form = told["json_schema"]
    assert form["name"] == ("JokeDict" if schema is JokeDict else "Joke")
    assert set(form["schema"]["properties"]) == {"setup", "rating"}
    assert form.get("strict") is strict


@pytest.mark.parametrize("schema", [Joke, TOOL], ids=["pydantic", "tool"])
def test_raw_and_parsed_come_together(env: Env, schema: Any) -> None:
    """With `include_raw` the message is returned too, with its usage and attempts."""
    llm = env.llm().with_structured_output(schema, include_raw=True)

    answer = env.invoke(llm, ASKED)

    assert set(answer) == {"raw", "parsed", "parsing_error"}
    assert isinstance(answer["raw"], AIMessage)
    assert "retryrouter" in answer["raw"].response_metadata
    assert dict(answer["parsed"]) == SAID
    assert answer["parsing_error"] is None


def test_what_cannot_be_parsed_is_an_error_or_told(env: Env) -> None:
    """An answer that is not of the schema is raised, or returned with `include_raw`."""
    call = ToolCall("Joke", '{"setup": "Why?", "rating": "many"}')
    env.gateway.always(Answer(tool_calls=(call,)))

    with pytest.raises(ValidationError, match="rating"):
        env.invoke(env.llm().with_structured_output(Joke), ASKED)
    told = env.invoke(env.llm().with_structured_output(Joke, include_raw=True), ASKED)

    assert told["parsed"] is None
    assert "rating" in str(told["parsing_error"])
    assert told["raw"].tool_calls[0]["args"]["rating"] == "many"


def test_the_public_gateway_says_no_to_a_json_schema(env: Env) -> None:
    """After its opaque 500 one stream tells the cause, and nothing else is sent."""
    with FaultyGateway(answer=RuleResponder()) as public:
        llm = env.llm(gpt_router_api_base=public.url)
        structured = llm.with_structured_output(Joke, method="json_schema")
        with pytest.raises(InvalidRequestError, match="response_format"):
            env.invoke(structured, ASKED)
        assert [request.streaming for request in public.requests] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"method": "magic"}, "'json_schema', 'json_mode', not 'magic'"),
        ({"schema": None}, "'function_calling' needs a schema"),
        ({"schema": None, "method": "json_schema"}, "'json_schema' needs a schema"),
        ({"method": "json_mode", "strict": True}, "'json_mode' cannot be strict"),
    ],
    ids=["method", "no-schema", "no-json-schema", "strict-json"],
)
def test_arguments_that_do_not_fit_are_refused(
    new_llm: NewModel, arguments: dict[str, Any], told: str
) -> None:
    """A wrong method, or one without what it needs, is an error before any call."""
    with pytest.raises(ValueError, match=told):
        new_llm().with_structured_output(**{"schema": Joke, **arguments})
