"""Tools and structured output: the options of a call, and the parser of its answer.

Names and forms are those of LangChain's own integrations, so that agents and chains
written for another chat model work here too.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import ge, gt, itemgetter, le, lt, pos
from typing import Any, Final, Literal, TypeAlias, get_args
from urllib.parse import unquote

from langchain_core.language_models.base import LanguageModelInput
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage
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
from langchain_core.runnables import (
    Runnable,
    RunnableConfig,
    RunnableLambda,
    RunnableMap,
    RunnablePassthrough,
)
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import (
    convert_to_json_schema,
    convert_to_openai_tool,
)
from langchain_core.utils.json import parse_json_markdown
from langchain_core.utils.pydantic import is_basemodel_subclass
from pydantic import BaseModel

from langchain_retryrouter._providers.integrations import (
    check_tool_choice,
    name_of_tool,
    read_tool_choice,
)
from langchain_retryrouter._shared import require
from langchain_retryrouter.errors import RetryRouterError

Tool: TypeAlias = dict[str, Any] | type | Callable[..., Any] | BaseTool
Schema: TypeAlias = dict[str, Any] | type
Method: TypeAlias = Literal["function_calling", "json_schema", "json_mode"]


def tool_options(
    tools: Sequence[Tool],
    tool_choice: dict[str, Any] | str | bool | None,  # noqa: FBT001 - LangChain's own
    *,
    strict: bool | None = None,
    parallel_tool_calls: bool | None = None,
) -> dict[str, Any]:
    """The options of a call that offers `tools`; none if there are no tools."""
    choice = read_tool_choice(tool_choice)
    if not tools:
        # Agents without tools bind an empty list. Providers refuse it, and also options
        # for tools without any tools.
        if choice not in (None, "auto", "none"):
            msg = f"tool_choice is {tool_choice!r}, and there are no tools"
            raise ValueError(msg)
        return {}
    formatted = [convert_to_openai_tool(tool, strict=strict) for tool in tools]
    options: dict[str, Any] = {"tools": formatted}
    check_tool_choice(choice, [name_of_tool(tool) for tool in formatted])
    if choice == "any":
        options["tool_choice"] = "required"
    elif choice in ("auto", "none"):
        options["tool_choice"] = choice
    elif isinstance(tool_choice, dict):
        options["tool_choice"] = tool_choice
    elif choice is not None:
        options["tool_choice"] = {"type": "function", "function": {"name": choice}}
    if parallel_tool_calls is not None:
        options["parallel_tool_calls"] = parallel_tool_calls
    return options


def structured_model(
    model: BaseChatModel,
    schema: Schema | None,
    method: Method,
    *,
    include_raw: bool,
    strict: bool | None,
    **kwargs: Any,
) -> Runnable[LanguageModelInput, Any]:
    """`model`, answering with an object of a pydantic class, or else with a dict."""
    methods = get_args(Method)
    allowed = f"one of {', '.join(map(repr, methods))}"
    require("method", method, allowed, is_met=method in methods)
    if method == "json_mode" and strict is not None:
        msg = "'json_mode' cannot be strict: the provider does not get the schema"
        raise ValueError(msg)
    # Classes of `pydantic.v1` count too, as they do in LangChain's own integrations.
    is_class = isinstance(schema, type) and is_basemodel_subclass(schema)
    kind: Any = schema if is_class else None
    parser: BaseOutputParser[Any] | BaseGenerationOutputParser[Any] = JsonOutputParser()
    if kind is not None:
        parser = PydanticOutputParser(pydantic_object=kind)
    settings = {"method": method, "strict": strict}
    options: dict[str, Any] = {"response_format": {"type": "json_object"}}
    if method == "json_mode":
        del settings["strict"]
    elif schema is None:
        msg = f"method {method!r} needs a schema; only 'json_mode' goes without"
        raise ValueError(msg)
    elif method == "function_calling":
        name = convert_to_openai_tool(schema)["function"]["name"]
        options = tool_options([schema], name, strict=strict, parallel_tool_calls=False)
        parser = JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
        if kind is not None:
            parser = PydanticToolsParser(tools=[kind], first_tool_only=True)
    else:
        form = _json_schema_form(schema)
        if strict is not None:
            form["strict"] = strict
        options = {"response_format": {"type": "json_schema", "json_schema": form}}
    # For tracers: LangChain takes it out of what the model gets.
    options["ls_structured_output_format"] = {"kwargs": settings, "schema": schema}
    asked = model.bind(**{**options, **kwargs})
    if not include_raw:
        return asked | parser
    parsed = RunnablePassthrough.assign(
        parsed=itemgetter("raw") | parser, parsing_error=lambda _: None
    )
    unread = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=asked) | parsed.with_fallbacks(
        [unread], exception_key="parsing_error"
    )


def _json_schema_form(schema: Schema) -> dict[str, Any]:
    """`schema` in OpenAI's form; a form that is complete already is kept."""
    if isinstance(schema, dict):
        nested = schema.get("json_schema")
        if schema.get("type") == "json_schema" and isinstance(nested, dict):
            return dict(nested)
        if "name" in schema and "schema" in schema:
            return dict(schema)
    plain = convert_to_json_schema(schema)
    # Its title may be another one: that of the parameters of a tool.
    return {"name": convert_to_openai_tool(schema)["function"]["name"], "schema": plain}


# --- what answers of several providers have in common ---


_TYPES: Final[Mapping[type, str]] = {
    dict: "object",
    list: "array",
    str: "string",
    type(None): "null",
    bool: "boolean",
    int: "integer",
    float: "number",
}
_LIMITS: Final[Mapping[str, tuple[Any, Callable[[Any], Any], Callable[..., bool]]]] = {
    "minimum": ((int, float), pos, ge),
    "maximum": ((int, float), pos, le),
    "exclusiveMinimum": ((int, float), pos, gt),
    "exclusiveMaximum": ((int, float), pos, lt),
    "minLength": (str, len, ge),
    "maxLength": (str, len, le),
    "minItems": (list, len, ge),
    "maxItems": (list, len, le),
}


class OutputFormat:
    """The schema that a router's answers must fit, by whichever way they were asked.

    Attributes:
        schema: What a route is given: the schema, but of a class of pydantic.v1, which
            integrations warn about, its JSON schema.
        name: The name of the schema, and of the tool that asks for it.
        json_schema: The schema in JSON, with its name as `title`.
        refused: Names of the routes that refused to answer in this format, and are
            asked by a tool instead.
    """

    def __init__(self, schema: Schema | None, *, may_call: bool = False) -> None:
        """Of any JSON without a schema; with `may_call`, other tools may be called."""
        self._may_call = may_call
        self.schema = schema
        self.refused: set[str] = set()
        self._model: Any = None
        self._schema: dict[str, Any] = {}
        self.json_schema: dict[str, Any] = {}
        self._takes_none = not isinstance(schema, dict)
        if schema is None:
            self.name = ""
            return
        form = _json_schema_form(schema)
        self.name, self._schema = form["name"], dict(form["schema"])
        self.json_schema = {**self._schema, "title": self.name}
        if isinstance(schema, type) and is_basemodel_subclass(schema):
            self._model = schema
            if not issubclass(schema, BaseModel):
                self.schema = self.json_schema
        # LangChain's schema of a TypedDict requires all fields, and knows no None.
        keys = getattr(schema, "__required_keys__", None)
        if keys is not None:
            required = self._schema.get("required", [])
            self._schema["required"] = [key for key in required if key in keys]

    def parse(self, message: BaseMessage) -> Any:
        """The object that a message holds: in a call of the tool, or else in its text.

        Raises:
            ValueError: There is none, or it does not fit the schema.
        """
        calls = getattr(message, "tool_calls", [])
        if calls and self._may_call:
            return None
        data = next((one["args"] for one in calls if one["name"] == self.name), None)
        if data is None:
            for call in getattr(message, "invalid_tool_calls", []):
                msg = f"the arguments of {call['name']} are not JSON: {call['args']}"
                raise ValueError(msg)
            if not message.text.strip():
                msg = f"there is no call of {self.name!r}, and no JSON"
                raise ValueError(msg)
            read = functools.partial(json.loads, strict=False)
            try:
                data = parse_json_markdown(message.text, parser=read)
            except ValueError as error:
                msg = f"this is not JSON: {error}"
                raise ValueError(msg) from error
        if self._model is not None and issubclass(self._model, BaseModel):
            return self._model.model_validate_json(json.dumps(data))
        if self._model is not None:
            return self._model.parse_obj(data)  # Of pydantic.v1.
        if misfits := list(self._misfits(data, self._schema, "the object")):
            raise ValueError("; ".join(misfits))
        return data

    def _misfits(self, value: Any, schema: Any, place: str) -> Iterator[str]:
        """Where `value` does not fit the JSON schema, as far as it uses usual words.

        What is not understood, such as a pattern of JavaScript's, is not checked: a
        good answer is not to fail because of it.
        """
        if not isinstance(schema, Mapping) or (value is None and self._takes_none):
            return
        if isinstance(ref := schema.get("$ref"), str):
            yield from self._misfits(value, self._at(ref), place)
        for one in schema.get("allOf", ()):
            yield from self._misfits(value, one, place)
        choices = [*schema.get("anyOf", ()), *schema.get("oneOf", ())]
        misfits = [list(self._misfits(value, one, place)) for one in choices]
        if misfits and all(misfits):
            yield f"{place}: " + " or ".join(texts[0] for texts in misfits)
        types = schema.get("type", [])
        types = [types] if isinstance(types, str) else types
        if value is None and schema.get("nullable"):
            return
        own = {_TYPES.get(type(value))}
        if own == {"integer"} or (isinstance(value, float) and value.is_integer()):
            own = {"integer", "number"}
        if own.isdisjoint(types) and types and {*_TYPES.values()}.issuperset(types):
            yield f"{place} must be of type {' or '.join(types)}, not {value!r}"
            return
        allowed = schema.get("enum", [schema["const"]] if "const" in schema else None)
        if allowed is not None and value not in allowed:
            yield f"{place} must be one of {allowed!r}, not {value!r}"
        for word, (kind, size, is_within) in _LIMITS.items():
            limit = schema.get(word)  # A bool, or a text, is of another draft.
            is_limited = type(limit) in {int, float} and isinstance(value, kind)
            if is_limited and not is_within(size(value), limit):
                yield f"{place} must have {word} {limit!r}, and is {value!r}"
        pattern = schema.get("pattern")
        if pattern and isinstance(value, str):
            with contextlib.suppress(re.error):
                if not re.search(pattern, value):
                    yield f"{place} must match {pattern!r}, and is {value!r}"
        if isinstance(value, dict):
            known = schema.get("properties", {})
            if "patternProperties" in schema:
                schema = {**schema, "additionalProperties": {}}
            for name in schema.get("required", ()):
                if name not in value:
                    yield f"{place} has no {name!r}"
            for name, item in value.items():
                others = known.get(name, schema.get("additionalProperties", {}))
                if others is False:
                    yield f"{place} may not have {name!r}"
                yield from self._misfits(item, others, f"{name!r}")
        if isinstance(value, list):
            for index, item in enumerate(value):
                where = f"item {index} of {place}"
                yield from self._misfits(item, schema.get("items"), where)

    def _at(self, ref: str) -> Any:
        """What a reference points to; None if that is not known."""
        parts = unquote(ref).removeprefix("#").split("/")
        target: Any = self._schema
        try:
            for part in filter(None, parts):
                key = part.replace("~1", "/").replace("~0", "~")
                target = target[int(key) if isinstance(target, list) else key]
        except (LookupError, TypeError, ValueError):
            return None
        return target

    def read_from(
        self, model: Runnable[LanguageModelInput, AIMessage], *, include_raw: bool
    ) -> Runnable[LanguageModelInput, Any]:
        """The objects of a model whose answers are known to fit.

        With `include_raw`, dicts of the message (`raw`), the object (`parsed`) and the
        `parsing_error`.
        """

        async def aparse(message: BaseMessage) -> Any:
            return self.parse(message)

        if not include_raw:
            return model | RunnableLambda(self.parse, aparse)

        def whole(message: BaseMessage) -> dict[str, Any]:
            parsed = self.parse(message)
            return {"raw": message, "parsed": parsed, "parsing_error": None}

        def unfit(error: RetryRouterError) -> dict[str, Any]:
            for one in (error, *error.others):
                if one.raw_message is not None:
                    raw = one.raw_message
                    return {"raw": raw, "parsed": None, "parsing_error": one}
            raise error

        def ask(prompt: LanguageModelInput, config: RunnableConfig) -> Any:
            try:
                return whole(model.invoke(prompt, config))
            except RetryRouterError as error:
                return unfit(error)

        async def aask(prompt: LanguageModelInput, config: RunnableConfig) -> Any:
            try:
                return whole(await model.ainvoke(prompt, config))
            except RetryRouterError as error:
                return unfit(error)

        return RunnableLambda(ask, aask)
