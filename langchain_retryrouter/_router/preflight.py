"""What is read from a request before it is sent: its conversation, needs and tokens.

A route is skipped if its model's profile says that it cannot take the request, while
another one can. Where a profile is silent, the route is asked: it knows better.
"""

from __future__ import annotations

import functools
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Final, TypeVar, cast

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.messages.utils import count_tokens_approximately
from langchain_core.runnables import RunnableConfig, ensure_config

from langchain_retryrouter._providers.history import fit_history
from langchain_retryrouter._retry.timeouts import run_with_timeout
from langchain_retryrouter._router.plan import RouteCost
from langchain_retryrouter._router.route import Route
from langchain_retryrouter.errors import ContextLengthError

logger = logging.getLogger(__name__)

_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """What the caller asked, the same for every route."""

    messages: list[BaseMessage]
    stop: list[str] | None
    options: dict[str, Any]

    def hash(self) -> int:
        """The same number for the same conversation, within this process."""
        return hash(repr([(one.type, one.content) for one in self.messages]))


# --- conversations --------------------------------------------------------------------

_THREAD_KEYS: Final = ("thread_id", "conversation_id", "session_id")
"""LangGraph's name of a conversation, and those of LangSmith and of histories."""
# What differs from turn to turn, or from process to process, in the same block.
_VARYING: Final = frozenset({"id", "index", "cache_control", "extras", "annotations"})


def with_thread(config: RunnableConfig | None) -> RunnableConfig:
    """A config whose thread id is in its metadata, where `_generate` can read it."""
    config = ensure_config(config)
    thread = _thread_of(config.get("configurable") or {})
    if thread is not None:
        config["metadata"] = {**(config.get("metadata") or {}), "thread_id": thread}
    return config


def conversation_of(
    messages: Sequence[BaseMessage], metadata: Mapping[str, Any] | None
) -> bytes:
    """The same bytes for each turn of a conversation, in every process.

    They are a hash of the thread id, or else of the system message and the first
    message of the user.
    """
    thread = _thread_of(metadata or {})
    if thread is None:  # A chain or a graph has put its config into the context.
        thread = _thread_of(ensure_config().get("configurable") or {})
    text = json.dumps(thread) if thread is not None else _beginning(messages)
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _thread_of(values: Mapping[str, Any]) -> str | None:
    named = (values.get(key) for key in _THREAD_KEYS)
    return next((str(value) for value in named if value not in (None, "")), None)


def _beginning(messages: Sequence[BaseMessage]) -> str:
    """What all turns of a conversation begin with."""
    kinds = (SystemMessage, HumanMessage)
    found = [next((m for m in messages if isinstance(m, kind)), None) for kind in kinds]
    begun = [one for one in found if one is not None] or messages[:1]
    return json.dumps([_canonical(one.content) for one in begun])


def _canonical(content: Any) -> str:
    """The same text for a text and for a list with one block of it."""
    if isinstance(content, str):
        return content
    parts = []
    for block in content:
        if isinstance(block, dict) and not isinstance(block.get("text"), str):
            stable = {k: v for k, v in block.items() if k not in _VARYING}
            parts.append(json.dumps(stable, sort_keys=True, default=str))
        else:
            parts.append(block["text"] if isinstance(block, dict) else str(block))
    return "\n".join(parts)


# --- needs ----------------------------------------------------------------------------

_MARGIN: Final = 1.1  # A count that is 10 % above the limit leaves no doubt.
# Every tokenizer in use splits at these places at least, so pieces are a lower bound.
# A Chinese, Japanese or Korean token has seldom more than three characters. The vowel
# signs of Hindi or Thai are no `\w`, and belong to their words.
_PIECE: Final = re.compile(r"[\u2e80-\uffff]{1,3}|[\w\x80-\u2e7f]+|[^\w\s]+")
_BYTES: Final = 6  # Few texts have more bytes a token.
_LONG: Final = 24  # A longer piece is no word of most languages.
_LONG_TOKEN: Final = 8
_MEDIA: Final = {
    "image": "image_inputs",
    "audio": "audio_inputs",
    "video": "video_inputs",
    "pdf": "pdf_inputs",
}
"""The kinds of media, with the key of a profile that says whether they are read."""
_BLOCK_KINDS: Final = {
    "image": "image",
    "image_url": "image",
    "input_image": "image",
    "audio": "audio",
    "input_audio": "audio",
    "video": "video",
    "video_url": "video",
}


def skipped_routes(
    routes: Sequence[Route], request: ModelRequest
) -> tuple[dict[int, str], ContextLengthError | None]:
    """The reasons why routes cannot take a request, by the routes' positions.

    Empty if none can take it: then all are asked, since a profile may be mistaken. But
    for a prompt that is too long for every route there is an error.
    """
    messages = request.messages
    profiles = [profile_of(route) for route in routes]
    if not any(profiles):
        return {}, None
    media = {kind for message in messages for kind in _media_of(message)}
    texts = [text for message in messages for text in _texts_of(message)]
    characters, most = sum(map(len, texts)), 0
    reasons, limits = {}, {}
    for position, (route, profile) in enumerate(zip(routes, profiles, strict=True)):
        limit = max_input_tokens(profile)
        # No token is shorter than a character.
        if characters > limit * _MARGIN and (tokens := _count(texts, limit)):
            most = max(most, tokens)
            limits[position] = f"{route.name} {limit:,}"
            reasons[position] = (
                f"the prompt has at least {tokens:,} tokens, and the model takes"
                f" {limit:,}"
            )
            continue
        if lacks := _lacking(profile, media, {**route.options, **request.options}):
            reasons[position] = f"the model takes no {' and no '.join(lacks)}"
    if len(limits) == len(routes):
        msg = (
            f"nothing was sent: the prompt has at least {most:,} tokens, and the"
            f" routes take at most: {', '.join(limits.values())}"
        )
        error = ContextLengthError(msg, may_have_run=False)
        error.attempts = 0
        return reasons, error
    return {} if len(reasons) == len(routes) else reasons, None


def profile_of(route: Route) -> Mapping[str, Any]:
    """What a route's model says of itself; nothing if it speaks for several models."""
    model = route.model
    fields = type(model).model_fields
    for name in ("routes", "models_priority_list"):
        if name in fields and len(getattr(model, name)) > 1:
            return {}
    return model.profile or {}


def common_profile(profiles: list[ModelProfile | None]) -> ModelProfile | None:
    """What every route can do: the smallest numbers, the features that all have.

    Only what all profiles speak of is claimed; None if a route has no profile.
    """
    if not all(profiles):
        return None
    known: list[dict[str, Any]] = [dict(profile) for profile in profiles if profile]
    common: dict[str, Any] = {}
    for name, first in known[0].items():
        values: list[Any] = [profile.get(name) for profile in known]
        if any(value is False for value in values):
            common[name] = False
        elif None in values:
            continue
        elif isinstance(first, int | float):
            common[name] = min(values)
        elif isinstance(first, list):
            common[name] = [item for item in first if all(item in v for v in values)]
        elif all(value == first for value in values):
            common[name] = first
    return cast("ModelProfile", common)


def max_input_tokens(profile: Mapping[str, Any]) -> float:
    """The longest prompt that a model takes; infinite if that is not known."""
    limit = profile.get("max_input_tokens")
    return limit if isinstance(limit, int | float) and limit > 0 else math.inf


def exceeds(tokens: int, limit: float) -> bool:
    """Whether so many tokens are too many beyond doubt."""
    return tokens > limit * _MARGIN


def cost_of(route: Route, input_tokens: int | None) -> RouteCost:
    """What a route costs, with its tier, and why a long prompt skips it."""
    cost, remarks = route.route_cost, []
    if route.group is not None:
        tier = f"tier {route.tier}" if route.tier is not None else "pool"
        remarks.append(f"{tier}, weight {route.weight:g}")
    limit = max_input_tokens(profile_of(route))
    if input_tokens is not None and exceeds(input_tokens, limit):
        remarks.append(f"skipped: the model takes {limit:,} tokens")
        cost = replace(cost, requests=0)
    return replace(cost, prices=route.prices, warnings=(*remarks, *cost.warnings))


def _count(texts: Sequence[str], limit: float) -> int:
    """The tokens that texts have at least, if that is too many; 0 if it is in doubt.

    It takes long only for a text that is too long almost certainly.
    """
    if sum(text.count(one) for text in texts for one in " \n\t") > limit:
        words = sum(len(text.split()) for text in texts)
        if exceeds(words, limit):
            return words
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    if size <= limit * _BYTES:
        return 0
    tokens = sum(map(tokens_at_least, texts))
    return tokens if exceeds(tokens, limit) else 0


def tokens_at_least(text: str) -> int:
    """A number of tokens that a text has at least, for any tokenizer in use."""
    pieces = _PIECE.findall(text)
    return len(pieces) + sum(
        len(piece) // _LONG_TOKEN
        for piece in pieces
        if len(piece) > _LONG and piece[0].isalnum()  # Not a rule of a table.
    )


def _texts_of(message: BaseMessage) -> Iterator[str]:
    content = message.content
    if isinstance(content, str):
        yield content
    else:
        for block in content:
            text = block.get("text") if isinstance(block, dict) else block
            if isinstance(text, str):
                yield text
    for call in message.tool_calls if isinstance(message, AIMessage) else ():
        yield json.dumps(call["args"], ensure_ascii=False, default=str, skipkeys=True)


def _media_of(message: BaseMessage) -> Iterator[str]:
    if isinstance(message.content, str) or isinstance(message, AIMessage):
        return  # What a model has made is not sent to every other model.
    for block in message.content:
        if not isinstance(block, dict):
            continue
        kind = _BLOCK_KINDS.get(str(block.get("type")))
        if kind is None and block.get("type") != "text":
            kind = _kind_of_file(block)
        if kind is not None:
            yield kind


def _kind_of_file(block: dict[str, Any]) -> str | None:
    """The kind of a file in any provider's form; None if it is not known."""
    inner = [block, *(v for v in block.values() if isinstance(v, dict))]
    for one in inner:
        for name in ("mime_type", "media_type", "file_data", "data", "filename"):
            value = one.get(name)
            if not isinstance(value, str):
                continue
            kind = value[:40].lower().removeprefix("data:")
            if kind.startswith("application/pdf") or value[-4:].lower() == ".pdf":
                return "pdf"
            if kind.startswith(("image/", "audio/", "video/")):
                return kind.partition("/")[0]
    return None


def _lacking(
    profile: Mapping[str, Any], media: set[str], options: Mapping[str, Any]
) -> list[str]:
    """What a request needs, and a profile says that the model does not take."""
    lacks = [kind for kind in sorted(media) if profile.get(_MEDIA[kind]) is False]
    if options.get("tools") and profile.get("tool_calling") is False:
        lacks.append("tools")
    form = options.get("response_format")
    is_schema = isinstance(form, type) or (
        isinstance(form, dict) and form.get("type") == "json_schema"
    )
    if is_schema and profile.get("structured_output") is False:
        lacks.append("schema")
    return lacks


# --- tokens ---------------------------------------------------------------------------

_COUNTERS: Final = ("get_token_ids", "get_num_tokens", "get_num_tokens_from_messages")
_COUNTING_LIMIT: Final = 5.0  # Seconds: some counters ask their provider.
_COUNTING_PAUSE: Final = 60.0  # Seconds in which a counter that failed is not asked.


class TokenCounter:
    """Counts tokens as the first route that can does, or else approximately."""

    def __init__(self) -> None:
        self._failed: dict[str, float] = {}

    def ids(self, routes: list[Route], text: str) -> list[int]:
        """The ids of the tokens of `text`."""
        found = self._ask(routes, 1, lambda route: route.model.get_token_ids(text))
        return list(range(self._approximately(text))) if found is None else found

    def of_text(self, routes: list[Route], text: str) -> int:
        """The number of tokens of `text`."""
        found = self._ask(routes, 2, lambda route: route.model.get_num_tokens(text))
        return self._approximately(text) if found is None else found

    def of_messages(
        self,
        routes: list[Route],
        messages: list[BaseMessage],
        tools: Sequence[Any] | None,
    ) -> int:
        """The number of tokens of `messages`."""
        given = {"tools": tools} if tools else {}

        def count(route: Route) -> int:
            fitted, _ = fit_history(messages, route.reader)
            return route.model.get_num_tokens_from_messages(fitted, **given)

        found = self._ask(routes, 3, count)
        if found is None:
            offered = cast("list[Any]", tools) if tools else None
            return count_tokens_approximately(messages, tools=offered)
        return found

    def _ask(
        self, routes: list[Route], counters: int, count: Callable[[Route], _R]
    ) -> _R | None:
        """The first count that succeeds, of routes with one of so many `_COUNTERS`.

        LangChain's own counter is left out: it is GPT-2's, and fetches it.
        """
        for route in routes:
            model = route.model
            has_counter = model.custom_get_token_ids is not None or any(
                getattr(type(model), name) is not getattr(BaseChatModel, name)
                for name in _COUNTERS[:counters]
            )
            if not has_counter or time.monotonic() < self._failed.get(route.name, 0.0):
                continue
            try:
                return run_with_timeout(
                    _COUNTING_LIMIT, functools.partial(count, route)
                )
            except Exception as error:  # noqa: BLE001 - any counter may be asked
                self._failed[route.name] = time.monotonic() + _COUNTING_PAUSE
                logger.info("route %r cannot count tokens: %s", route.name, error)
        return None

    @staticmethod
    def _approximately(text: str) -> int:
        return -(-len(text) // 4)
