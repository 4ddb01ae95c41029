"""What is known of a call before it is sent: its conversation, needs, tokens and cost.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, cast

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.runnables import RunnableConfig, ensure_config

from langchain_retryrouter._providers.history import fit_history
from langchain_retryrouter._retry.timeouts import run_with_timeout
from langchain_retryrouter._router.route import Route
from langchain_retryrouter._shared import is_number, require
from langchain_retryrouter.errors import ContextLengthError
from langchain_retryrouter.failures import FailureAction, FailureKind, is_retryable
from langchain_retryrouter.policy import RetryPolicy, with_limits
from langchain_retryrouter.spend_limits import SpendLimit

logger = logging.getLogger(__name__)


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
    # A chain or a graph has put its config into the context.
    thread = _thread_of(metadata or {}) or _thread_of(
        ensure_config().get("configurable") or {}
    )
    if thread is not None:
        text = json.dumps(thread)
    else:
        kinds = (SystemMessage, HumanMessage)
        firsts = [next((m for m in messages if isinstance(m, k)), None) for k in kinds]
        begun = [one for one in firsts if one is not None] or messages[:1]
        text = json.dumps([_canonical(one.content) for one in begun])
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _thread_of(values: Mapping[str, Any]) -> str | None:
    named = (values.get(key) for key in _THREAD_KEYS)
    return next((str(value) for value in named if value not in (None, "")), None)


def _canonical(content: Any) -> str:
    """The same text for a text and for a list with one block of it."""
    parts = []
    for block in [content] if isinstance(content, str) else content:
        if isinstance(block, dict) and not isinstance(block.get("text"), str):
            stable = {k: v for k, v in block.items() if k not in _VARYING}
            parts.append(json.dumps(stable, sort_keys=True, default=str))
        else:
            parts.append(block["text"] if isinstance(block, dict) else str(block))
    return "\n".join(parts)


# --- needs ----------------------------------------------------------------------------

# Seconds of an attempt, until the first token, and of a silence.
_TIME_LIMITS: Final = (300.0, 60.0, 60.0)
_MARGIN: Final = 1.1  # A count that is 10 % above the limit leaves no doubt.
# Every tokenizer in use splits at these places at least, so pieces are a lower bound.
# A Chinese, Japanese or Korean token has seldom more than three characters. The vowel
# signs of Hindi or Thai are not `\w`, but belong to their words.
_PIECE: Final = re.compile(r"[\u2e80-\uffff]{1,3}|[\w\x80-\u2e7f]+|[^\w\s]+")
_BYTES: Final = 6  # Few texts have more bytes a token.
_LONG: Final = 24  # Few languages have longer words.
_LONG_TOKEN: Final = 8
_MEDIA: Final = ("image", "audio", "video", "pdf")  # As in a profile's `image_inputs`.
_TELLS_KIND: Final = ("mime_type", "media_type", "file_data", "data", "filename")


def skipped_routes(
    routes: Sequence[Route], request: ModelRequest
) -> tuple[dict[str, str], ContextLengthError | None]:
    """The reasons why routes cannot take a request, by the routes' names.

    Empty if none can take it: then all are asked, since a profile may be mistaken. But
    for a prompt that is too long for every route there is an error.
    """
    messages = request.messages
    profiles = [_profile_of(route) for route in routes]
    if not any(profiles):
        return {}, None
    media = sorted({kind for message in messages for kind in _media_of(message)})
    texts = [text for message in messages for text in _texts_of(message)]
    characters, most = sum(map(len, texts)), 0
    reasons, limits = {}, []
    for route, profile in zip(routes, profiles, strict=True):
        limit = _max_input_tokens(profile)
        # No token is shorter than a character.
        if characters > _MARGIN * limit and (tokens := _count(texts, limit)):
            most = max(most, tokens)
            limits.append(f"{route.name} {limit:,}")
            reasons[route.name] = (
                f"the prompt has at least {tokens:,} tokens, and the model takes"
                f" {limit:,}"
            )
            continue
        options = {**route.options, **request.options}
        lacks = [kind for kind in media if profile.get(f"{kind}_inputs") is False]
        if options.get("tools") and profile.get("tool_calling") is False:
            lacks.append("tools")
        form = options.get("response_format")
        is_schema = isinstance(form, type) or (
            isinstance(form, dict) and form.get("type") == "json_schema"
        )
        if is_schema and profile.get("structured_output") is False:
            lacks.append("schema")
        if lacks:
            reasons[route.name] = f"the model takes no {' and no '.join(lacks)}"
    if len(limits) == len(routes):
        msg = (
            f"nothing was sent: the prompt has at least {most:,} tokens, and the"
            f" routes take at most: {', '.join(limits)}"
        )
        error = ContextLengthError(msg, may_have_run=False)
        error.attempts = 0
        return reasons, error
    return {} if len(reasons) == len(routes) else reasons, None


def _profile_of(route: Route) -> Mapping[str, Any]:
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


def _max_input_tokens(profile: Mapping[str, Any]) -> float:
    """The longest prompt that a model takes; infinite if that is not known."""
    limit = profile.get("max_input_tokens")
    return limit if isinstance(limit, int | float) and limit > 0 else math.inf


def _count(texts: Sequence[str], limit: float) -> int:
    """The tokens that texts have at least, if that is too many; 0 if it is in doubt.

    It takes long only for a text that is too long almost certainly.
    """
    if sum(text.count(one) for text in texts for one in " \n\t") > limit:
        words = sum(len(text.split()) for text in texts)
        if words > _MARGIN * limit:
            return words
    size = sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)
    if size <= limit * _BYTES:
        return 0
    tokens = sum(map(tokens_at_least, texts))
    return tokens if tokens > _MARGIN * limit else 0


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
    for block in [content] if isinstance(content, str) else content:
        text = block.get("text") if isinstance(block, dict) else block
        if isinstance(text, str):
            yield text
    for call in message.tool_calls if isinstance(message, AIMessage) else ():
        yield json.dumps(call["args"], ensure_ascii=False, default=str, skipkeys=True)


def _media_of(message: BaseMessage) -> Iterator[str]:
    """The kinds of the media in a message, in any provider's form."""
    if isinstance(message.content, str) or isinstance(message, AIMessage):
        return  # What a model has made is not sent to every other model.
    for block in message.content:
        if not isinstance(block, dict) or block.get("type") == "text":
            continue
        # Such as "image", "image_url" and "input_image".
        words = str(block.get("type")).split("_")
        if found := [kind for kind in _MEDIA if kind in words]:
            yield found[0]
            continue
        # A file: its type or its name is in the block, or in a dict inside it.
        inner = (block, *(v for v in block.values() if isinstance(v, dict)))
        for value in (one.get(name) for one in inner for name in _TELLS_KIND):
            if not isinstance(value, str):
                continue
            kind = value[:40].lower().removeprefix("data:")
            if kind.startswith("application/pdf") or value[-4:].lower() == ".pdf":
                yield "pdf"
                break
            if kind.startswith(("image/", "audio/", "video/")):
                yield kind.partition("/")[0]
                break


# --- cost -----------------------------------------------------------------------------

_EFFECTS: Final = {
    FailureAction.RETRY: "repeated, then the next route",
    FailureAction.FAILOVER: "the next route at once",
    FailureAction.RAISE: "the end of the call",
}


@dataclass(frozen=True, slots=True)
class Cost:
    """What a call costs at most, on a route or in all.

    Attributes:
        name: The route.
        requests: Requests sent.
        waited: Seconds waited between them.
        money: For these requests, in the prices' currency; None if it is not known.
        remark: What became of the retries of the route's model.
    """

    name: str
    requests: int
    waited: float
    money: float | None = None
    remark: str = ""


@dataclass(frozen=True, slots=True)
class RoutingWorstCase:
    """What a call along routes costs at most; `str()` is a table of it.

    Attributes:
        routes: Each route's share, in the router's order.
        requests: Requests sent in all.
        waited: Seconds waited between them in all.
        seconds: Seconds until the caller has an answer or an error, without a stream;
            None if nothing limits a single attempt.
        first_token: Seconds until a stream's first token or an error; None if nothing
            limits it.
        silent_route: Seconds that the first route costs a call without a stream if it
            accepts the request and never answers; None if nothing limits it.
        silent_stream: Seconds of silence after a stream's first token until it is left;
            None if nothing limits it.
        money: For all requests, if each is charged in full, or `max_cost` if that is
            less; None if it is not known.
        after: What follows each kind of failure, in effect.
        limits: The spend limits, and what is left of each.
    """

    routes: tuple[Cost, ...]
    requests: int
    waited: float
    seconds: float | None
    first_token: float | None
    silent_route: float | None
    silent_stream: float | None
    money: float | None
    after: Mapping[FailureKind, FailureAction]
    limits: tuple[str, ...] = ()

    def __str__(self) -> str:
        """A table of the routes, the time limits, and what follows which failure."""
        total = Cost("in all", self.requests, self.waited, self.money)
        has_money = any(cost.money is not None for cost in (*self.routes, total))
        rows = [["route", "requests", "waited", *(["money"] if has_money else []), ""]]
        for cost in (*self.routes, total):
            money = "?" if cost.money is None else f"{cost.money:.4f}"
            numbers = [str(cost.requests), f"{cost.waited:.1f} s"]
            numbers += [money] if has_money else []
            rows.append([cost.name, *numbers, cost.remark])
        first, *others = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = []
        for name, *numbers, remark in rows:
            cells = [n.rjust(w) for n, w in zip(numbers, others[:-1], strict=True)]
            lines.append("  ".join([name.ljust(first), *cells, remark]).rstrip())
        lines.append("")
        for what, seconds in (
            ("an answer or an error, without a stream", self.seconds),
            ("a stream's first token", self.first_token),
            ("a silent route is left, without a stream", self.silent_route),
            ("a stream that falls silent is left", self.silent_stream),
        ):
            limit = "no limit" if seconds is None else f"within {seconds:.1f} s"
            lines.append(f"{what}: {limit}")
        lines += [*self.limits, ""]
        for action, effect in _EFFECTS.items():
            kinds = [
                kind.value for kind in FailureKind if self.after.get(kind) is action
            ]
            if kinds:
                lines.append(f"{effect}: {', '.join(kinds)}")
        return "\n".join(lines)


def limited_policy(policy: RetryPolicy, places: int) -> RetryPolicy:
    """A policy with a router's time limits where it sets none.

    `places` are the addresses that the router asks: where a route's share of the
    deadline is less than a limit, it is left to the call.
    """
    attempt, first_token, stall = _TIME_LIMITS
    share = (policy.deadline or math.inf) / places
    limits = [limit if limit < share else None for limit in (attempt, first_token)]
    return with_limits(policy, (*limits, stall))


def worst_case(
    policy: RetryPolicy,
    routes: Sequence[Route],
    after: Mapping[FailureKind, FailureAction],
    *,
    stream_recovery: str,
    tokens: Mapping[str, int | None],
    max_cost: float | None,
    spend_limit: SpendLimit | None,
) -> RoutingWorstCase:
    """What a call costs at most; see `RetryRouter.explain`.

    These are bounds: few calls come near. Waits for a rate limit, and for a pause that
    a server asked of an earlier call, come on top. Retries of a model's own are counted
    as far as they are known.
    """
    has_tokens = any(value is not None for value in tokens.values())
    for name, value in tokens.items() if has_tokens else ():
        allowed, is_met = "a number of tokens, 0 or more", is_number(value)
        advice = "; the money needs both counts"
        require(name, value, allowed, is_met=is_met, advice=advice)
    effects = dict(after)
    for kind, action in after.items():
        is_retried = policy.max_retries > 0 and is_retryable(kind)
        if action is FailureAction.RETRY and not is_retried:
            effects[kind] = FailureAction.FAILOVER
    # A route that was left is asked again before the call gives up.
    repeats = any(
        is_retryable(kind) and action is not FailureAction.RAISE
        for kind, action in effects.items()
    )
    is_repeated = repeats or stream_recovery == "continue"
    attempts = policy.max_attempts if is_repeated else 1
    between = policy.explain().waited if repeats else 0.0
    most = policy.deadline or math.inf
    costs = []
    for route in routes:
        cost, remarks = route.status.cost, []
        requests, money = attempts * cost.requests, None
        if cost.disabled_retries:
            remarks.append(f"{cost.disabled_retries} switched off")
        if route.group is not None:
            tier = f"tier {route.tier}" if route.tier is not None else "pool"
            remarks.append(f"{tier}, weight {route.weight:g}")
        if has_tokens:
            limit = _max_input_tokens(_profile_of(route))
            if cast("int", tokens["input_tokens"]) > _MARGIN * limit:
                remarks.append(f"skipped: the model takes {limit:,} tokens")
                requests = 0
            each = None if route.prices is None else route.prices.cost(tokens)
            money = None if each is None else requests * each
        waited = min(most, between + attempts * cost.waited)
        remark = "; ".join([*remarks, *cost.warnings])
        costs.append(Cost(route.name, requests, waited, money, remark))
    sums = [cost.money for cost in costs if cost.money is not None]
    total = sum(sums) if len(sums) == len(costs) else None
    if max_cost is not None:
        total = max_cost if total is None else min(total, max_cost)

    def within(limit: float | None) -> float | None:
        """Seconds for all attempts, of which each ends after `limit` seconds."""
        if limit is None:
            return policy.deadline
        return min(most, len(costs) * (attempts * limit + between))

    is_whole = stream_recovery == "buffer"
    silent_route = policy.attempt_timeout
    if silent_route is not None:
        silent_route = min(most, silent_route)
    elif policy.deadline is not None:
        silent_route = policy.deadline / max(1, len(costs))
    stall = policy.stall_timeout
    limits = [spend_limit, *(route.spend_limit for route in routes)]
    return RoutingWorstCase(
        routes=tuple(costs),
        requests=sum(cost.requests for cost in costs),
        waited=min(most, sum(cost.waited for cost in costs)),
        seconds=within(policy.attempt_timeout),
        first_token=within(None if is_whole else policy.first_token_timeout),
        silent_route=silent_route,
        silent_stream=policy.deadline if stall is None else min(most, stall),
        money=total,
        after=effects,
        limits=tuple(
            f"{limit} has {limit.left:.4g} left"
            for limit in dict.fromkeys(limits)
            if limit is not None
        ),
    )


# --- tokens ---------------------------------------------------------------------------

_COUNTERS: Final = ("get_token_ids", "get_num_tokens", "get_num_tokens_from_messages")
_COUNTING_LIMIT: Final = 5.0  # Seconds: some counters ask their provider.
_COUNTING_PAUSE: Final = 60.0  # Seconds in which a counter that failed is not asked.


class TokenCounter:
    """Counts tokens as the first route that can does."""

    def __init__(self) -> None:
        self._failed: dict[str, float] = {}

    def ask(
        self, routes: Sequence[Route], counter: str, content: Any, **options: Any
    ) -> Any:
        """What the first counter of that name says of a text, or of messages.

        None if there is none. LangChain's own counter is left out: it is GPT-2's, and
        fetches it.
        """
        own = _COUNTERS[: _COUNTERS.index(counter) + 1]
        for route in routes:
            model, given = route.model, content
            has_counter = model.custom_get_token_ids is not None or any(
                getattr(type(model), name) is not getattr(BaseChatModel, name)
                for name in own
            )
            if not has_counter or time.monotonic() < self._failed.get(route.name, 0.0):
                continue
            try:
                if not isinstance(content, str):
                    given, _ = fit_history(content, route.reader)
                count = functools.partial(getattr(model, counter), given, **options)
                return run_with_timeout(_COUNTING_LIMIT, count)
            except Exception as error:  # noqa: BLE001 - any counter may be asked
                self._failed[route.name] = time.monotonic() + _COUNTING_PAUSE
                logger.info("route %r cannot count tokens: %s", route.name, error)
        return None
