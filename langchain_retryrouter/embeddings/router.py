"""`EmbeddingsRouter`: embeddings of one model at several places, as one that answers.

The texts are split into batches, and each batch is a call of the engine in `_retry`
along the routes, with the breakers, budget and time limits of a `RetryRouter`. Vectors
of different models are never mixed: all routes name one model, and each answer is
checked, since a wrong vector would be stored and not be noticed for long.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import re
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Self, TypeAlias

from langchain_core.embeddings import Embeddings
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from langchain_retryrouter._base import SharingModel
from langchain_retryrouter._providers.errors import (
    MOST_STALE,
    is_of_closed_loop,
    name_failure,
)
from langchain_retryrouter._providers.integrations import (
    disable_embedding_retries,
    embedding_model_of,
    keys_of,
)
from langchain_retryrouter._retry.call_log import Subject
from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK, Clock
from langchain_retryrouter._retry.engine import Attempt, RetryContext, acall, call
from langchain_retryrouter._retry.health import (
    MENDED_BY_HAND,
    RouteHealth,
    RouteState,
    health_of,
)
from langchain_retryrouter._retry.limits import call_limits
from langchain_retryrouter._retry.timeouts import (
    agather_bounded,
    reraise_lost_cancellation,
)
from langchain_retryrouter._router import setup
from langchain_retryrouter._router.models import init_by_name
from langchain_retryrouter._router.outcomes import lead_of
from langchain_retryrouter._router.route import rate_limits_of, router_scope, scope_of
from langchain_retryrouter._secrets import check_number, shown
from langchain_retryrouter._shared import is_hook, require
from langchain_retryrouter.circuit_breaker import CircuitBreaker, CircuitBreakerSettings
from langchain_retryrouter.errors import (
    APITimeoutError,
    MalformedResponseError,
    RetryRouterError,
    VectorSpaceError,
)
from langchain_retryrouter.failures import FAILURE_ACTIONS, FailureAction, FailureKind
from langchain_retryrouter.policy import RetryPolicy, with_limits
from langchain_retryrouter.rate_limits import RateLimit, Size

Vector: TypeAlias = list[float]

logger = logging.getLogger(__name__)

_DEFAULT_LIMIT: Final = 60.0  # Seconds of an attempt.
_BYTES_OF_TOKEN: Final = 4
_DIMENSIONS: Final = ("dimensions", "output_dimensionality", "output_dimension")
# What providers write of a batch that has too many texts, or too many tokens in all.
_ABOUT_SIZE: Final = re.compile(
    r"too (?:many|large|long)|batch|at most \d|maxim|\bmax\b|exceed", re.IGNORECASE
)


class EmbeddingsRoute(BaseModel):
    """One place where the model is asked.

    Attributes:
        model: Any LangChain `Embeddings`; or a string such as
            "openai:text-embedding-3-small" if langchain is installed.
        name: What attempt logs and errors call it; by default the class of the model.
        space: The model whose vectors it makes, where its own name does not say so,
            such as the name of a deployment.
        breaker: A `CircuitBreaker` that this route shares with others; by default it
            has one of its own with the router's `breaker_settings`.
        rate_limit: A `RateLimit` of this route, its own or shared with others. A
            `rate_limit` of the model itself counts as well.
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )

    model: Embeddings = Field(repr=False)
    name: str = ""
    space: str = ""
    breaker: CircuitBreaker | None = Field(default=None, repr=False)
    rate_limit: RateLimit | None = Field(default=None, repr=False)

    @field_validator("model", mode="before")
    @classmethod
    def _read_model(cls, value: Any) -> Any:
        if isinstance(value, str):
            return init_by_name(value, "langchain.embeddings", "init_embeddings")
        if isinstance(value, EmbeddingsRouter):
            msg = "a route cannot be an EmbeddingsRouter: put its routes into `routes`"
            raise TypeError(msg)
        if not isinstance(value, Embeddings):
            msg = f"a route's model must be LangChain Embeddings, not {shown(value)}"
            raise TypeError(msg)
        return value


class EmbeddingsRouter(SharingModel, Embeddings):
    """Embeddings of one model at several places, which answer while one of them can.

    There is one vector for each text, in order, or an error. Failed attempts are
    retried, and then the next route is asked, as in a `RetryRouter`; a batch that was
    answered is not sent again.

    Example:
        ```python
        from langchain_retryrouter import EmbeddingsRouter

        embeddings = EmbeddingsRouter(
            routes=[at_openai, at_azure],  # of the same model
            space="text-embedding-3-small",
        )
        vectors = embeddings.embed_documents(["a text", "another one"])
        ```

    LangChain has no callbacks for embeddings: use `on_attempt_log`, and the hooks of
    the policy (`on_retry`, `on_failover`).
    """

    # An unknown argument may be a key, and a URL has a password.
    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", hide_input_in_errors=True
    )

    routes: list[EmbeddingsRoute] = Field(min_length=1)
    """The places to ask, in this order; embeddings are a route, and so is a string."""

    space: str = ""
    """The model whose vectors are made; needed where the routes do not all say it.

    A route whose own model has another name is refused, unless it says that its vectors
    are of this space: `EmbeddingsRoute(model=..., space="text-embedding-3-small")`.
    """

    dimensions: int | None = Field(default=None, ge=1)
    """Numbers in each vector; by default as many as the first answer has. An answer
    with another number is a `VectorSpaceError`."""

    retry_policy: RetryPolicy = Field(default_factory=RetryPolicy)
    """Retries, waits and time limits. An attempt has 60 s by default; `deadline` is for
    all batches of a call together."""

    breaker_settings: CircuitBreakerSettings | None = Field(
        default_factory=lambda: CircuitBreakerSettings(**setup.BREAKER_DEFAULTS)
    )
    """Numbers of each route's own breaker, as in a `RetryRouter`; None: no breakers."""

    max_batch_size: int = Field(default=1000, ge=1)
    """Texts of a request at most; less if a route's model has a smaller `chunk_size`.
    A batch that a provider says is too large is sent again in halves."""

    max_batch_tokens: int | None = Field(default=None, ge=1)
    """Tokens of a request at most, counted approximately; a text is never split."""

    max_concurrency: int = Field(default=4, ge=1)
    """Batches at once of an async call; a sync call sends one after the other."""

    on_attempt_log: Callable[[dict[str, Any]], object] | None = Field(
        default=None, exclude=True, repr=False
    )
    """Called with the attempt log of each batch, also of one that failed."""

    _read_once = frozenset(
        {"breaker_settings", "clock", "dimensions", "routes", "space", "store"}
    )

    if TYPE_CHECKING:

        def __init__(
            self, *, routes: Sequence[EmbeddingsRoute | Embeddings | str], **fields: Any
        ) -> None:
            """Of embeddings as well as of routes, which the type cannot express."""

    @field_validator("routes", mode="before")
    @classmethod
    def _take_models(cls, value: Any) -> Any:
        if isinstance(value, Sequence) and not isinstance(value, str):
            return [
                one if isinstance(one, EmbeddingsRoute) else EmbeddingsRoute(model=one)
                for one in value
            ]
        given = repr(value) if isinstance(value, str) else shown(value)
        msg = f"routes must be a list of embeddings or EmbeddingsRoutes, not {given}"
        raise ValueError(msg)

    @field_validator("on_attempt_log", mode="before")
    @classmethod
    def _check_hook(cls, value: Any) -> Any:
        allowed, is_met = "a function that is not async", is_hook(value)
        require("on_attempt_log", value, allowed, is_met=is_met)
        return value

    _check_breaker_settings = field_validator("breaker_settings", mode="before")(
        setup.breaker_settings
    )
    _check_numbers = field_validator(
        *("dimensions", "max_batch_size", "max_batch_tokens", "max_concurrency"),
        mode="wrap",
    )(check_number)

    @model_validator(mode="after")
    def _prepare(self) -> Self:
        """Check that the routes make vectors of one model; disable their retries."""
        space = _space_of(self.space, self.routes)
        dimensions = _common_dimensions(self.dimensions, self.routes)
        routes, found = [], []
        names = [route.name or type(route.model).__name__ for route in self.routes]
        for name, route in zip(setup.distinct(names), self.routes, strict=True):
            disabled = disable_embedding_retries(route.model)
            if disabled.warning:
                found.append(f"route {name!r} {disabled.warning}")
            update = {"model": disabled.model, "name": name}
            routes.append(route.model_copy(update=update))
        vars(self).update(routes=routes, space=space, dimensions=dimensions)
        if found:
            warnings.warn("; ".join(found), UserWarning, stacklevel=3)
        _ = self._memory  # Before there are copies, which share it.
        return self

    @functools.cached_property
    def _memory(self) -> tuple[list[RouteState], dict[str, int]]:
        """What copies share: the states of the routes, and the vectors' dimensions."""
        states, scopes = [], []
        for route in self.routes:
            breaker = route.breaker
            if breaker is None and self.breaker_settings is not None:
                breaker = CircuitBreaker(**self.breaker_settings, clock=self.clock)
            scope = scope_of(route.name, route.model, self.space)
            scopes.append(scope)
            for one in (breaker, *rate_limits_of(route)):
                if one is not None:
                    one.join(self.store, scope)
            states.append(RouteState(route.name, breaker, RouteHealth()))
        if self.budget is not None:
            self.budget.join(self.store, router_scope(scopes))
        known = {} if self.dimensions is None else {"dimensions": self.dimensions}
        return states, known

    # --- LangChain's interface ---

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each text, in the order of the texts.

        Raises:
            RetryRouterError: A batch was answered by no route; a `VectorSpaceError` if
                a route's vectors have another number of dimensions.
            TypeError: `texts` is one string, or holds something else.
        """
        call = _EmbedCall(self, *self._memory, texts)
        return [vector for batch in call.batches() for vector in call.embed(batch)]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Async variant of `embed_documents`: `max_concurrency` batches at once."""
        call = _EmbedCall(self, *self._memory, texts)
        batches = call.batches()
        if not batches:
            return []
        answers = await agather_bounded(call.aembed, batches, self.max_concurrency)
        return [vector for vectors in answers for vector in vectors]

    def embed_query(self, text: str) -> list[float]:
        """The vector of one query, as the routes' `embed_query` makes it."""
        call = _EmbedCall(self, *self._memory, [text], is_query=True)
        return call.embed(range(1))[0]

    async def aembed_query(self, text: str) -> list[float]:
        """Async variant of `embed_query`."""
        call = _EmbedCall(self, *self._memory, [text], is_query=True)
        return (await call.aembed(range(1)))[0]

    # --- health and closing ---

    def health(self) -> dict[str, Any]:
        """How the routes are, by the calls so far; see `RetryRouter.health`."""
        states, _ = self._memory
        return health_of(states, self.clock or SYSTEM_CLOCK)

    def close(self) -> None:
        """Close the routes' models, as far as they have a `close` method."""
        for route in self.routes:
            if callable(close := getattr(route.model, "close", None)):
                close()
        super().close()

    async def aclose(self) -> None:
        """Close the routes' models by `aclose`, or else by `close`."""
        for route in self.routes:
            if callable(aclose := getattr(route.model, "aclose", None)):
                await aclose()
            elif callable(close := getattr(route.model, "close", None)):
                close()
        await super().aclose()


def _space_of(space: str, routes: list[EmbeddingsRoute]) -> str:
    """The one model whose vectors all routes make."""
    names, unknown = set[str](), []
    for route in routes:
        name = route.space or embedding_model_of(route.model)
        if name is None:
            unknown.append(route.name or type(route.model).__name__)
        else:
            names.add(name)
    if not space:
        if len(routes) == 1:
            return (*names, *unknown)[0]
        if unknown:
            msg = (
                f"space is needed: the model of {', '.join(unknown)} is not known; name"
                " the model whose vectors all routes make, such as"
                " space='text-embedding-3-small'"
            )
            raise ValueError(msg)
        if len(names) == 1:
            return names.pop()
    # Names may differ by the provider's prefix, as in `openai/name`.
    bare = space.casefold().rpartition("/")[2]
    others = sorted(n for n in names if n.casefold().rpartition("/")[2] != bare)
    if others:
        of_space = f", and space={space!r}" if space else ""
        msg = (
            f"the routes name different models ({', '.join(others)}{of_space}), whose"
            " vectors cannot be compared: list one model; where a name is only another"
            " one for it, say so by EmbeddingsRoute(model=..., space='the model')"
        )
        raise ValueError(msg)
    return space


def _common_dimensions(given: int | None, routes: list[EmbeddingsRoute]) -> int | None:
    """The number of dimensions that the router or the routes' models ask for."""
    asked = {
        value
        for route in routes
        for name in _DIMENSIONS
        if name in getattr(type(route.model), "model_fields", {})
        and ((value := getattr(route.model, name)) or given is None)
    }
    if given is not None:
        asked.add(given)
    if len(asked) > 1:
        numbers = ", ".join(str(one or "the model's own") for one in asked)
        msg = f"the routes ask for different dimensions: {numbers}"
        raise ValueError(msg)
    return next(iter(asked), None)


# --- one call -------------------------------------------------------------------------


class _EmbedCall:
    """One call: its batches, their deadline, and what is asked of the routes."""

    def __init__(
        self,
        router: EmbeddingsRouter,
        states: list[RouteState],
        known: dict[str, int],
        texts: Iterable[str],
        *,
        is_query: bool = False,
    ) -> None:
        if isinstance(texts, str | bytes):
            msg = f"texts must be a list of strings, not one {type(texts).__name__}"
            raise TypeError(msg)
        texts = list(texts)
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                msg = f"text {position} must be a string, not {type(text).__name__}"
                raise TypeError(msg)
        self.router = router
        self.states = states
        self.known = known
        self.texts = texts
        self.is_query = is_query
        self.clock = router.clock or SYSTEM_CLOCK
        self.began = self.clock.monotonic()
        share = (router.retry_policy.deadline or math.inf) / len(router.routes)
        limit = _DEFAULT_LIMIT if share > _DEFAULT_LIMIT else None
        self.policy = with_limits(router.retry_policy, (limit, None, None))
        self.refused = set[str | None]()  # Routes that later batches ask last.

    def batches(self) -> list[range]:
        """The places of the texts of each request."""
        sizes = [getattr(r.model, "chunk_size", None) for r in self.router.routes]
        own = [size for size in sizes if isinstance(size, int) and size > 0]
        most = min([self.router.max_batch_size, *own])
        most_tokens = self.router.max_batch_tokens or math.inf
        batches, begin, tokens = [], 0, 0
        for place in range(len(self.texts)):
            size = self.tokens(place)
            if place - begin == most or (place > begin and tokens + size > most_tokens):
                batches.append(range(begin, place))
                begin, tokens = place, 0
            tokens += size
        return [*batches, range(begin, len(self.texts))] if self.texts else []

    def tokens(self, place: int) -> int:
        """About as many tokens as the text at this place has."""
        size = len(self.texts[place].encode("utf-8", "surrogatepass"))
        return size // _BYTES_OF_TOKEN + 1

    def embed(self, batch: range) -> list[Vector]:
        """The vectors of a batch, in halves if it is too large."""
        request = _Batch(self, batch)
        try:
            return call(request.context, request.send)
        except RetryRouterError as error:
            request.refuse_halves(error)
        finally:
            request.log()
        half = len(batch) // 2
        return [*self.embed(batch[:half]), *self.embed(batch[half:])]

    async def aembed(self, batch: range) -> list[Vector]:
        request = _Batch(self, batch)
        try:
            return await acall(request.context, request.asend)
        except RetryRouterError as error:
            request.refuse_halves(error)
        finally:
            request.log()
        half = len(batch) // 2
        return [*await self.aembed(batch[:half]), *await self.aembed(batch[half:])]


class _Batch:
    """The attempts of one batch. Vectors that have come are not asked for again."""

    def __init__(self, call: _EmbedCall, batch: range) -> None:
        router, deadline = call.router, call.policy.deadline
        if deadline is not None and call.clock.monotonic() - call.began >= deadline:
            msg = f"the deadline of {deadline:g} s is over, and texts are left"
            error = APITimeoutError(msg, may_have_run=False)
            error.attempts, error.is_retryable = 0, False
            raise error
        self._call = call
        self._batch = batch
        self._vectors: dict[int, Vector] = {}
        self._lock = threading.Lock()
        self._failures: list[RetryRouterError] = []
        routes = zip(router.routes, call.states, strict=True)
        ordered = sorted(routes, key=lambda one: one[0].name in call.refused)
        self._routes = [route for route, _ in ordered]
        self._state = CallState(
            call.policy,
            [state for _, state in ordered],
            budget=router.budget,
            time=call.clock,
            began=call.began,
            actions=FAILURE_ACTIONS,
            describe=self._describe,
            limits=call_limits(
                [rate_limits_of(route) for route in self._routes],
                lambda _: Size(sum(map(call.tokens, batch)), 0),
            ),
        )
        self.context = RetryContext(
            self._state, on_failure=self._on_failure, action=self._action_for
        )

    def _describe(self, position: int) -> Subject:
        """What a route asks, for observers."""
        model = self._routes[position].model
        package = type(model).__module__.partition(".")[0]
        name = getattr(model, "model", None)
        name = name if isinstance(name, str) else self._call.router.space
        return Subject("embeddings", package.removeprefix("langchain_"), name)

    def log(self) -> None:
        """Hand over the attempt log."""
        if (hand_over := self._call.router.on_attempt_log) is not None:
            hand_over({**self._state.attempt_log(), "texts": len(self._batch)})

    def refuse_halves(self, error: RetryRouterError) -> None:
        """Raise the error that the caller gets, unless halves may be answered."""
        if self._is_too_large(error):
            return
        lead = lead_of([*self._failures, error], is_raised=self._state.is_raised)
        if len(self._call.texts) > 1:
            first, last = self._batch[0], self._batch[-1]
            which = f"text {first}" if first == last else f"texts {first} to {last}"
            lead.add_note(f"{which} of {len(self._call.texts)}, counted from 0")
        raise lead

    def send(self, attempt: Attempt) -> list[Vector]:
        """One attempt, for the vectors that are missing."""
        route, places, texts = self._missing()
        with _named_failures(self._call.clock, route.model):
            if self._call.is_query:
                answer: Any = [route.model.embed_query(texts[0])]
            else:
                answer = route.model.embed_documents(texts)
        return self._take(attempt, route, places, answer)

    async def asend(self, attempt: Attempt) -> list[Vector]:
        route, places, texts = self._missing()
        stale = 0
        while True:
            try:
                with (
                    _named_failures(self._call.clock, route.model),
                    reraise_lost_cancellation(),
                ):
                    if self._call.is_query:
                        answer: Any = [await route.model.aembed_query(texts[0])]
                    else:
                        answer = await route.model.aembed_documents(texts)
                return self._take(attempt, route, places, answer)
            except RetryRouterError as error:
                # Connections of another `asyncio.run` say nothing about the provider.
                stale += 1
                if stale >= MOST_STALE or not is_of_closed_loop(error):
                    raise
                self._state.resent(attempt.number, error.failure)

    def _missing(self) -> tuple[EmbeddingsRoute, list[int], list[str]]:
        places = [place for place in self._batch if place not in self._vectors]
        texts = [self._call.texts[place] for place in places]
        return self._routes[self._state.position], places, texts

    def _take(
        self, attempt: Attempt, route: EmbeddingsRoute, places: list[int], answer: Any
    ) -> list[Vector]:
        """All vectors, if these are the ones that were missing.

        Raises:
            MalformedResponseError: Vectors are missing, or are not lists of numbers.
            VectorSpaceError: They have another number of dimensions.
        """
        answer = list(answer) if isinstance(answer, Iterable) else []
        count = len(answer)
        if count != len(places):
            msg = f"{count} vectors came back for {len(places)} texts"
            raise _BadVectorsError(msg, should_retry=False)
        found = {p: v for p, v in zip(places, answer, strict=True) if _is_vector(v)}
        lengths = sorted({len(vector) for vector in found.values()})
        if len(lengths) > 1:
            msg = f"vectors of different lengths came back: {lengths}"
            raise _BadVectorsError(msg, should_retry=False)
        for length in lengths:
            known = self._call.known.setdefault("dimensions", length)
            if length != known:
                msg = (
                    f"route {route.name!r} answers with vectors of {length} numbers,"
                    f" and those of {self._call.router.space!r} have {known}: they"
                    " cannot be compared, so this route must not be asked for it"
                )
                raise VectorSpaceError(msg)
        with self._lock:
            if attempt.number == self._state.attempts:  # Not a thread that was left.
                self._vectors |= {p: [*map(float, v)] for p, v in found.items()}
        if len(found) < count:
            msg = f"{count - len(found)} of {count} vectors are not finite numbers"
            raise _BadVectorsError(msg, should_retry=None if found else False)
        return [self._vectors[place] for place in self._batch]

    def _on_failure(self, error: RetryRouterError) -> None:
        self._failures.append(error)
        if error.kind in MENDED_BY_HAND:
            self._call.refused.add(error.route)
        # Without the message: what a server says may hold anything.
        status = "" if error.status_code is None else f", {error.status_code}"
        left, what = (
            len(self._batch) - len(self._vectors),
            type(error).__name__ + status,
        )
        logger.warning(
            "route %r failed to embed %d text(s): %s", error.route, left, what
        )

    def _action_for(self, error: RetryRouterError) -> FailureAction | None:
        if isinstance(error, VectorSpaceError) or self._is_too_large(error):
            return FailureAction.RAISE
        is_last = self._state.position == len(self._routes) - 1
        is_bad = isinstance(error, _BadVectorsError)
        return FailureAction.FAILOVER if is_bad and not is_last else None

    def _is_too_large(self, error: RetryRouterError) -> bool:
        """Whether the batch may be answered in halves."""
        if len(self._batch) == 1 or self._state.remaining() <= 0:
            return False
        if error.kind is FailureKind.INVALID_REQUEST and _ABOUT_SIZE.search(
            error.message
        ):
            return True
        is_overflow = error.kind is FailureKind.CONTEXT_OVERFLOW
        return is_overflow or error.status_code == HTTPStatus.REQUEST_ENTITY_TOO_LARGE


@contextlib.contextmanager
def _named_failures(clock: Clock, model: Embeddings) -> Iterator[None]:
    """Raise what a model raises as an error with a kind."""
    try:
        yield
    except RetryRouterError:
        raise
    except Exception as error:
        raise name_failure(error, clock.time(), keys_of(model)) from error


class _BadVectorsError(MalformedResponseError):
    """An answer lacks vectors, or some are not lists of numbers."""


def _is_vector(value: Any) -> bool:
    """Whether it is a list of finite numbers; fast, since there are millions."""
    try:
        # From 0.0, since numbers of one byte have a sum of one byte.
        return len(value) > 0 and math.isfinite(sum(value, 0.0))
    except (TypeError, ValueError, OverflowError):
        return False
