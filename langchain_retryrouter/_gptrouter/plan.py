"""How a call to a gateway is driven: what its connection's fields say of it.

Apart from the fields, since these are read when a class is imported, and this when a
model makes its calls.
"""

from __future__ import annotations

from typing import Any, Protocol

from gpt_router.models import GPTRouterMetadata

from langchain_retryrouter._gptrouter.connection import (
    GATEWAY_METADATA,
    GatewayConnection,
)
from langchain_retryrouter._gptrouter.errors import GPT_ROUTER_ERRORS
from langchain_retryrouter._retry.call_state import CallState
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK
from langchain_retryrouter._retry.engine import RetryContext
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.policy import RetryPolicy, effective_policy


class Asking(Protocol):
    """One call's requests, as its plan knows them."""

    def route(self) -> str:
        """The model that the next attempt asks first."""

    def on_failure(self, error: RetryRouterError) -> None:
        """Prepare the next attempt, knowing how the last one failed."""

    def should_failover(self, error: RetryRouterError) -> bool:
        """Whether the model asked first is out of the question, and others are not."""


def retry_context(connection: GatewayConnection, exchange: Asking) -> RetryContext:
    """One call's plan: the connection's patience, the exchange's requests."""
    clock = connection.clock or SYSTEM_CLOCK
    call_state = CallState(
        policy_of(connection),
        budget=connection.budget,
        breaker=connection.breaker,
        time=clock,
    )
    return RetryContext(
        call_state,
        errors=GPT_ROUTER_ERRORS,
        clock=clock,
        route=exchange.route,
        on_failure=exchange.on_failure,
        should_failover=exchange.should_failover,
    )


def policy_of(connection: GatewayConnection) -> RetryPolicy:
    """How often and how patiently a call is repeated."""
    return effective_policy(connection.retry_policy, connection.max_retries)


def take_metadata(
    connection: GatewayConnection, options: dict[str, Any]
) -> GPTRouterMetadata | None:
    """The gateway metadata of a call; what it says itself is taken out of it."""
    own = {
        name: options.pop(name, None) or getattr(connection, name)
        for name in GATEWAY_METADATA
    }
    if not any(own.values()):
        return None
    metadata = GPTRouterMetadata(
        tag=own["tag"],
        history_id=own["history_id"],
        created_by_user_id=own["user_id"],
        appId=own["app_id"],
    )
    return metadata.model_copy(update=own["gateway_metadata"])
