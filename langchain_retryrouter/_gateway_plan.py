"""How a call to a gateway is driven: what its connection's fields say of it.

Apart from the fields, since these are read when a class is imported, and this when a
model makes its calls.
"""

from __future__ import annotations

from typing import Any, Protocol

from gpt_router.models import GPTRouterMetadata

from langchain_retryrouter._core.policy import RetryPolicy, effective_policy
from langchain_retryrouter._core.session import RetrySession
from langchain_retryrouter._drive import SYSTEM_CLOCK, Plan
from langchain_retryrouter._gateway_connection import (
    GATEWAY_METADATA,
    GatewayConnection,
)
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.errors.gpt_router import GPT_ROUTER_ERRORS


class Asking(Protocol):
    """One call's requests, as its plan knows them."""

    def route(self) -> str:
        """The model that the next attempt asks first."""

    def learn(self, error: RetryRouterError) -> None:
        """Prepare the next attempt, knowing how the last one failed."""

    def leaves_behind(self, error: RetryRouterError) -> bool:
        """Whether the model asked first is out of the question, and others are not."""


def plan_of(connection: GatewayConnection, exchange: Asking) -> Plan:
    """One call's plan: the connection's patience, the exchange's requests."""
    clock = connection.clock or SYSTEM_CLOCK
    session = RetrySession(
        policy_of(connection),
        budget=connection.budget,
        breaker=connection.breaker,
        time=clock,
    )
    return Plan(
        session,
        errors=GPT_ROUTER_ERRORS,
        clock=clock,
        route=exchange.route,
        learn=exchange.learn,
        leaves_behind=exchange.leaves_behind,
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
