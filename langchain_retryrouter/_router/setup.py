"""What a `RetryRouter` is made of: checked settings, breakers, and its memory.

All of this happens when a router is built, and none of it in a call.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeAlias

from langchain_retryrouter._providers.integrations import credentials_of, endpoint_of
from langchain_retryrouter._retry.clock import Clock
from langchain_retryrouter._retry.health import RouteHealth, RouteState
from langchain_retryrouter._router.costs import OutputSizes, no_price
from langchain_retryrouter._router.preflight import TokenCounter
from langchain_retryrouter._router.route import (
    Accept,
    Route,
    rate_limits_of,
    router_scope,
)
from langchain_retryrouter._router.strategies import RouteOrder
from langchain_retryrouter._secrets import nearest, shown
from langchain_retryrouter._shared import require
from langchain_retryrouter.circuit_breaker import CircuitBreaker, CircuitBreakerSettings
from langchain_retryrouter.failures import FailureAction, FailureKind
from langchain_retryrouter.policy import RetryBudget, RetryPolicy
from langchain_retryrouter.rate_limits import RateLimit
from langchain_retryrouter.spend_limits import SpendLimit

BREAKER_DEFAULTS: Final = CircuitBreakerSettings(
    failure_threshold=3, recovery_time=10, recovery_jitter=0.1
)
"""Of the breakers of a router's routes; what is left out is `CircuitBreaker`'s own."""


FailoverRule: TypeAlias = (
    dict[FailureKind | type[Exception], FailureAction]
    | Callable[[Exception], FailureAction | str | None]
)


class RouterFields(Protocol):
    """The fields of a `RetryRouter` that its calls and its memory read."""

    routes: list[Route]
    retry_policy: RetryPolicy
    budget: RetryBudget | None
    rate_limit: RateLimit | None
    trace_attempts: bool | None
    hedge_after: float | None
    failover_on: FailoverRule | list[FailoverRule]
    accept: Accept | None
    max_cost: float | None
    spend_limit: SpendLimit | None
    clock: Clock | None
    seed: int | None
    store: Any
    breaker_settings: CircuitBreakerSettings | None

    @property
    def model_fields_set(self) -> set[str]: ...
    @property
    def strategy(self) -> str: ...
    @property
    def affinity(self) -> str | None: ...
    @property
    def stream_recovery(self) -> str: ...


class RouterMemory:
    """What a router remembers from call to call.

    Its bound copies share all of it but `output`, what their answers must fit.
    """

    def __init__(self, router: RouterFields) -> None:
        """Of a new router; a TypeError if it has nothing to share in its store."""
        is_list = router.strategy == "priority"
        if router.affinity and "strategy" not in router.model_fields_set:
            is_list = not any("weight" in r.model_fields_set for r in router.routes)
        self.order = RouteOrder(
            router.routes, router.strategy, seed=router.seed, is_list=is_list
        )
        self.route_states: list[RouteState] = []
        for route in router.routes:
            breaker, endpoint = route.breaker, None
            if breaker is None and router.breaker_settings is not None:
                breaker = CircuitBreaker(**router.breaker_settings, clock=router.clock)
            elif breaker is None and route.group is not None:
                # It opens only if a key has to be left alone.
                most = sys.maxsize
                breaker = CircuitBreaker(failure_threshold=most, clock=router.clock)
            if route.group is not None and (address := endpoint_of(route.model)):
                endpoint = (route.group, address)
            self.route_states.append(
                RouteState(route.name, breaker, RouteHealth(), route.group, endpoint)
            )
        states = enumerate(self.route_states)
        self.places = len({state.endpoint or index for index, state in states})
        self.output: Any = None  # An `OutputFormat`.
        self.counter = TokenCounter()
        self.outputs: OutputSizes = {}
        self._warned: set[str] = set()
        if router.store is None:
            return
        shared: list[tuple[Any, str]] = []
        for route, state in zip(router.routes, self.route_states, strict=True):
            own = (state.breaker, *rate_limits_of(route), route.spend_limit)
            shared += [(one, route.scope) for one in own]
        scope = router_scope(route.scope for route in router.routes)
        of_all = (router.budget, router.rate_limit, router.spend_limit)
        shared += [(one, scope) for one in of_all]
        if all(one is None for one, _ in shared):
            msg = (
                f"store={router.store!r} has nothing to share, since the router has no"
                " breakers (breaker_settings=None), no budget and no limit"
            )
            raise TypeError(msg)
        for one, name in shared:
            if one is not None:
                one.join(router.store, name)

    def is_open(self, index: int) -> bool:
        """Whether the breaker of a route refuses requests now."""
        breaker = self.route_states[index].breaker
        return breaker is not None and breaker.retry_after > 0

    def warn_once(self, text: str) -> None:
        """Warn, unless it was said before: agents bind their tools in each step."""
        if text not in self._warned:
            self._warned.add(text)
            warnings.warn(text, UserWarning, stacklevel=3)


def breaker_settings(value: Any) -> CircuitBreakerSettings | None:
    """Numbers of the breakers of routes, with a router's defaults; None for none."""
    if value is None:
        return None
    try:
        settings = CircuitBreakerSettings(**{**BREAKER_DEFAULTS, **value})
        CircuitBreaker(**settings)
    except TypeError as error:
        msg = (
            "breaker_settings must be numbers of CircuitBreaker, such as"
            " {'failure_threshold': 5}, or None for no breakers, not"
            f" {shown(value)}: {error}"
        )
        raise ValueError(msg) from error
    return settings


def check_rules(value: Any) -> Any:
    """Check `failover_on`; pydantic's error would have a line for each branch.

    Raises:
        ValueError: A rule is not one, or an action has another name.
    """
    for rule in value if isinstance(value, list | tuple) else [value]:
        if advice := _advice_on(rule):
            msg = f"failover_on {advice}"
            raise ValueError(msg)
        for what, action in rule.items() if isinstance(rule, Mapping) else ():
            check_action(action, f"failover_on[{what!r}]")
    return value


def _advice_on(rule: Any) -> str | None:
    """What is wrong with one rule, but for its actions."""
    if isinstance(rule, type):
        name = rule.__name__
        return f"needs an action for {name}: {{{name}: 'failover'}}"
    if not isinstance(rule, Mapping):
        return (
            None
            if callable(rule)
            else (
                "must be a mapping such as {'timeout': 'raise'}, a function of the"
                f" exception, or a list of these, not {shown(rule)}"
            )
        )
    kinds = [kind.value for kind in FailureKind]
    for what in rule:
        is_class = isinstance(what, type) and issubclass(what, Exception)
        if not is_class and what not in kinds:
            advice = nearest(what, kinds)
            return f"takes kinds of failures and exceptions, not {what!r}{advice}"
    return None


def check_action(action: Any, name: str) -> FailureAction:
    """The action that a caller gave under this name, or a ValueError."""
    actions = [one.value for one in FailureAction]
    allowed = f"one of {', '.join(map(repr, actions))}"
    require(name, action, allowed, is_met=action in actions)
    return FailureAction(action)


def distinct(names: Sequence[str]) -> list[str]:
    """Names of routes, with a number after those that are there already."""
    found: list[str] = []
    for name in names:
        own, count = name, 1
        while own in found:
            count += 1
            own = f"{name}-{count}"
        found.append(own)
    return found


def prepare_routes(routes: list[Route]) -> list[Route]:
    """The routes with distinct names and models that send once.

    What cannot be switched off is said in a warning.
    """
    names = distinct([route.name for route in routes])
    prepared = [route.prepared(name) for route, name in zip(routes, names, strict=True)]
    if found := [
        f"route {route.name!r} {text}"
        for route in prepared
        for text in route.status.cost.warnings
    ]:
        # Past the two `__init__`s, to the code that makes the router.
        warnings.warn("; ".join(found), UserWarning, stacklevel=4)
    return prepared


def check_routes(routes: Sequence[Route], *, needs_prices: bool) -> None:
    """Refuse routes that cannot be limited, or would hold each other."""
    keys: dict[Hashable, str] = {}
    breakers = set()
    for route in routes:
        # Looked up here, where `genai-prices` may read its list from the disk.
        is_known = route.prices is not None
        if not is_known and (needs_prices or route.spend_limit is not None):
            raise ValueError(no_price(route))
        key = credentials_of(route.model)
        if route.pool_id and key is not None and route.api_key_function is None:
            other = keys.setdefault((route.pool_id, key), route.name)
            if other != route.name:
                msg = (
                    f"routes {other!r} and {route.name!r} of a pool have the same key"
                    " and address: give each its own; `loads` takes several keys from"
                    " names such as OPENAI_API_KEY_1 and OPENAI_API_KEY_2"
                )
                raise ValueError(msg)
        if route.group is not None and route.breaker is not None:
            held = (route.group, id(route.breaker))
            if held in breakers:
                msg = (
                    f"route {route.name!r} shares its breaker with another route of its"
                    " tier, so that one's rate limit would hold the other one: give"
                    " each a breaker of its own"
                )
                raise ValueError(msg)
            breakers.add(held)


def bound_routes(
    routes: Sequence[Route], bind: Callable[[Route], Route], memory: RouterMemory
) -> list[Route]:
    """The routes as `bind` makes them; those that it cannot make are not asked.

    If it can make none of them, its error is raised.
    """
    bound, errors = [], []
    for route in routes:
        try:
            bound.append(bind(route))
        except (TypeError, ValueError) as error:
            errors.append(error)
            bound.append(route.with_status(unfit=str(error)))
    if len(errors) == len(bound):
        raise type(errors[0])("; ".join(map(str, errors))) from errors[0]
    for route in bound:
        status = route.status
        if status.unfit:
            memory.warn_once(f"{status.unfit}; this route is skipped")
        elif status.ignored:
            model = type(route.model).__name__
            text = f"route {route.name!r} ignores {status.ignored}: so does {model}"
            memory.warn_once(text)
    return bound
