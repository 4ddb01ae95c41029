"""What the package's models have in common.

`SharingModel` is a base of all: a store, a clock, and `with`. `RetriedModel` is one of
those that retry their own requests: `GPTRouter`, its embeddings and the OpenAI LLMs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from langchain_retryrouter._prices import load_list
from langchain_retryrouter._retry.call_log import Subject
from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK, Clock
from langchain_retryrouter._retry.limits import call_limits
from langchain_retryrouter._secrets import nearest
from langchain_retryrouter.circuit_breaker import CircuitBreaker
from langchain_retryrouter.policy import RetryBudget, RetryPolicy, resolve_policy
from langchain_retryrouter.rate_limits import RateLimit, Size
from langchain_retryrouter.stores import as_store, close_made


class SharingModel(BaseModel):
    """A model that shares with others, and is closed by `with` and `async with`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    budget: RetryBudget | None = Field(default=None, exclude=True, repr=False)
    """Limits retries during an outage: give the same object to all that share it."""
    store: Any = Field(default=None, exclude=True, repr=False)
    """Where breakers, limits and the budget are shared with other processes: a
    `stores.RedisStore`, its URL, or a `stores.MemoryStore`. A store of your own is
    yours to close."""
    clock: Clock | None = Field(default=None, exclude=True, repr=False)
    """Tells the time and waits; `testing.FakeClock` in a test."""

    _read_once: ClassVar[frozenset[str]] = frozenset()

    _as_store = field_validator("store", mode="before")(as_store)

    # Before pydantic makes numbers of texts, and 1 of True.
    @field_validator("retry_policy", mode="before", check_fields=False)
    @classmethod
    def _take_policy(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        names = [field.name for field in fields(RetryPolicy)]
        for name in value:
            if name not in names:
                msg = f"retry_policy takes no {name!r}{nearest(name, names)}"
                raise ValueError(msg)
        try:
            return RetryPolicy(**value)
        except ValueError as error:
            msg = f"retry_policy.{error}"
            raise ValueError(msg) from error

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a field; an AttributeError for one that is only read by the constructor.

        It would have no effect.
        """
        if name in self._read_once:
            msg = (
                f"{name} is only read when a {type(self).__name__} is made: give it"
                f" to the constructor, or to model_copy(update={{{name!r}: ...}})"
            )
            raise AttributeError(msg)
        super().__setattr__(name, value)

    def model_copy(
        self, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> Self:
        """A copy with the same memory; see `BaseModel.model_copy`.

        If `update` has a field that is only read by the constructor, it is a new model.
        """
        if update is None or self._read_once.isdisjoint(update):
            return super().model_copy(update=update, deep=deep)
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**given, **update})

    def close(self) -> None:
        """Close the connections of sync calls, and a store that the model has made."""
        close_made(self.store)

    async def aclose(self) -> None:
        """Async variant of `close`, for the connections of the running event loop."""
        close_made(self.store)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


class RetriedModel(SharingModel):
    """A model with a policy for its requests, a breaker and a limit."""

    max_retries: int = 2
    """Further attempts after the first, 0 for none; short for a `retry_policy` with
    this number. A `retry_policy` with another number is an error."""
    retry_policy: RetryPolicy | None = None
    """How often and how patiently to retry; None for the defaults."""
    breaker: CircuitBreaker | None = Field(default=None, exclude=True, repr=False)
    """Refuses to send during an outage: give the same object to all models of one
    provider. With a `store` the model makes one."""
    rate_limit: RateLimit | None = Field(default=None, exclude=True, repr=False)
    """Limits requests, tokens and concurrency: give the same object to all models of
    one account."""

    # Before pydantic makes 1 of True.
    @field_validator("max_retries", mode="before")
    @classmethod
    def _check_max_retries(cls, value: Any) -> int:
        return RetryPolicy(max_retries=value).max_retries

    @model_validator(mode="after")
    def _complete_retries(self) -> Self:
        load_list()
        if self.retry_policy is not None:
            given = self.max_retries if "max_retries" in self.model_fields_set else None
            self.max_retries = resolve_policy(self.retry_policy, given).max_retries
        return self

    def _join_store(self, name: str) -> None:
        """Share the breaker, the budget and the limit under this name."""
        if self.store is None:
            return
        self.breaker = self.breaker or CircuitBreaker(clock=self.clock)
        self.breaker.join(self.store, name)
        if self.budget is not None:
            self.budget.join(self.store, name)
        if self.rate_limit is not None:
            self.rate_limit.join(self.store, name)

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """What LangChain's `dumps` writes besides the fields.

        Of fields that are not data, such as a shared limit, it writes that they are
        missing, and `load` refuses them, or leaves them out if it is asked to.
        """
        hidden = ("budget", "breaker", "store", "rate_limit", "clock", "trace_attempts")
        given = {name: getattr(self, name, None) for name in hidden}
        given["retry_policy"] = self.retry_policy and asdict(self.retry_policy)
        return {name: value for name, value in given.items() if value is not None}


def new_call_state(
    model: RetriedModel,
    describe: Callable[[int], Subject],
    size: Callable[[int], Size],
) -> CallState:
    """The state of a new call of a model; `size` is only asked for if it counts."""
    # A copy whose fields were changed may have a `max_retries` that the policy denies.
    given = model.max_retries if "max_retries" in model.model_fields_set else None
    limit = model.rate_limit
    return CallState(
        resolve_policy(model.retry_policy, given, model.max_retries),
        budget=model.budget,
        breaker=model.breaker,
        time=model.clock or SYSTEM_CLOCK,
        describe=describe,
        limits=None if limit is None else call_limits([[limit]], size),
    )
