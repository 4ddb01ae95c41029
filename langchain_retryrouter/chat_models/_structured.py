"""Tools and structured output: the options of a call, and the parser of its answer.

Names and forms are those of LangChain's own integrations, so that agents and chains
written for another chat model work here too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Final, Literal, TypeAlias, TypeGuard, get_args

from langchain_core.language_models.base import LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import (
    BaseOutputParser,
    JsonOutputParser,
    PydanticOutputParser,
)
from langchain_core.output_parsers.base import BaseGenerationOutputParser
from langchain_core.output_parsers.openai_tools import (
    JsonOutputKeyToolsParser,
    PydanticToolsParser,
)
from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import (
    convert_to_json_schema,
    convert_to_openai_tool,
)
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

Tool: TypeAlias = dict[str, Any] | type | Callable[..., Any] | BaseTool
Schema: TypeAlias = dict[str, Any] | type
Method: TypeAlias = Literal["function_calling", "json_schema", "json_mode"]
Model: TypeAlias = Runnable[LanguageModelInput, AIMessage]
Parser: TypeAlias = BaseOutputParser[Any] | BaseGenerationOutputParser[Any]

_CHOICES: Final = {
    "any": "required",
    "required": "required",
    "auto": "auto",
    "none": "none",
}
_ASKS_FOR_NONE: Final = (None, False, "auto", "none")


def tool_options(
    tools: Sequence[Tool],
    tool_choice: dict[str, Any] | str | bool | None,  # noqa: FBT001 - LangChain's own
    *,
    strict: bool | None = None,
    parallel_tool_calls: bool | None = None,
) -> dict[str, Any]:
    """The options of a call that offers `tools`; none if there are no tools.

    Raises:
        ValueError: If `tool_choice` asks for a tool that is not given.
    """
    if not tools:
        # Agents without tools bind an empty list. Providers refuse it, and also options
        # for tools without any tools.
        if tool_choice not in _ASKS_FOR_NONE:
            msg = f"tool_choice is {tool_choice!r}, and there are no tools"
            raise ValueError(msg)
        return {}
    formatted = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
    options: dict[str, Any] = {"tools": formatted}
    choice = _choose(tool_choice, [_name_of(tool) for tool in formatted])
    if choice is not None:
        options["tool_choice"] = choice
    if parallel_tool_calls is not None:
        options["parallel_tool_calls"] = parallel_tool_calls
    return options


def _name_of(tool: dict[str, Any]) -> str:
    """A tool's name, or the type of a provider's own tool, which has no name."""
    function = tool.get("function")
    named = function if isinstance(function, dict) else tool
    return str(named.get("name") or tool.get("type"))


def _choose(
    choice: dict[str, Any] | str | bool | None,  # noqa: FBT001
    names: list[str],
) -> dict[str, Any] | str | None:
    if choice is None or choice is False:
        return None
    if choice is True:
        return "required"
    if isinstance(choice, dict):
        wanted = _name_of(choice)
    elif isinstance(choice, str):
        if choice in _CHOICES:
            return _CHOICES[choice]
        wanted, choice = choice, {"type": "function", "function": {"name": choice}}
    else:
        msg = f"tool_choice must be a str, bool or dict, not {choice!r}"
        raise TypeError(msg)
    if wanted not in names:
        msg = (
            f"tool_choice names {wanted!r}, and the tools are"
            f" {', '.join(map(repr, names))}; or say 'auto', 'any' or 'none'"
        )
        raise ValueError(msg)
    return choice


def structured_options(
    schema: Schema | None, method: Method, *, strict: bool | None
) -> dict[str, Any]:
    """The options of a call that asks for an answer of `schema`.

    Raises:
        ValueError: For a method that does not exist or does not fit the arguments.
    """
    _check_method(schema, method, strict=strict)
    settings: dict[str, Any] = {"method": method}
    if method != "json_mode":
        settings["strict"] = strict
    return {
        **_format_options(schema, method, strict=strict),
        # For tracers: LangChain takes it out of what the model gets.
        "ls_structured_output_format": {"kwargs": settings, "schema": schema},
    }


def _check_method(
    schema: Schema | None, method: Method, *, strict: bool | None
) -> None:
    if method not in get_args(Method):
        methods = ", ".join(map(repr, get_args(Method)))
        msg = f"method must be one of {methods}, not {method!r}"
        raise ValueError(msg)
    if schema is None and method != "json_mode":
        msg = f"method {method!r} needs a schema; only 'json_mode' goes without"
        raise ValueError(msg)
    if strict is not None and method == "json_mode":
        msg = "'json_mode' cannot be strict: the provider does not get the schema"
        raise ValueError(msg)


def _format_options(
    schema: Schema | None, method: Method, *, strict: bool | None
) -> dict[str, Any]:
    if method == "json_mode" or schema is None:
        return {"response_format": {"type": "json_object"}}
    if method == "function_calling":
        return tool_options(
            [schema],
            convert_to_openai_tool(schema)["function"]["name"],
            strict=strict,
            parallel_tool_calls=False,
        )
    form = _json_schema_form(schema)
    if strict is not None:
        form["strict"] = strict
    return {"response_format": {"type": "json_schema", "json_schema": form}}


def _json_schema_form(schema: Schema) -> dict[str, Any]:
    """`schema` in OpenAI's form; a form that is complete already is kept."""
    if isinstance(schema, dict):
        nested = schema.get("json_schema")
        if schema.get("type") == "json_schema" and isinstance(nested, dict):
            return dict(nested)
        if "name" in schema and "schema" in schema:
            return dict(schema)
    plain = convert_to_json_schema(schema)
    return {"name": str(plain["title"]), "schema": plain}


def structured_parser(schema: Schema | None, method: Method) -> Parser:
    """The parser of such an answer: to an object of a pydantic class, or to a dict."""
    if method == "function_calling" and schema is not None:
        if is_pydantic_class(schema):
            return PydanticToolsParser(tools=[schema], first_tool_only=True)
        name = convert_to_openai_tool(schema)["function"]["name"]
        return JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
    if is_pydantic_class(schema):
        return PydanticOutputParser(pydantic_object=schema)
    return JsonOutputParser()


def is_pydantic_class(schema: Schema | None) -> TypeGuard[type[BaseModel]]:
    """Whether answers are validated by, and come as objects of, `schema`.

    Classes of `pydantic.v1` count too, as they do in LangChain's own integrations.
    """
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def with_raw(model: Model, parser: Parser) -> Runnable[LanguageModelInput, Any]:
    """The message as `raw`, the object as `parsed`, and the `parsing_error`."""
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    unread = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=model) | parsed.with_fallbacks(
        [unread], exception_key="parsing_error"
    )
