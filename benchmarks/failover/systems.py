"""The systems of the scorecard, each with the bench's budget.

That is 2 retries, 30 s for a request or a silence, and one fallback; everything else is
left at the system's defaults. A `RetryRouter` gets none of these numbers: it has its
own defaults, or the limits that its name says.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, TypeAlias

from langchain_openai import ChatOpenAI

from benchmarks import peers
from benchmarks.peers import Ask, asked, asked_litellm
from benchmarks.scaled_loop import ScaledClock
from langchain_retryrouter import RetryPolicy, RetryRouter

System: TypeAlias = Callable[[str, float, list[str]], Ask]
"""Makes a system of: the provider's address, the scale of time, the models in order."""

_RETRIES: Final = 2
_PATIENCE: Final = 30.0


def _models(url: str, names: list[str], **fields: Any) -> list[ChatOpenAI]:
    fields["stream_usage"] = True
    return [peers.chat_openai(name, f"{url}/v1", **fields) for name in names]


def retry_router(url: str, scale: float, names: list[str], **limits: float) -> Ask:
    """`RetryRouter` with its defaults, or with these limits of a policy."""
    policy = {"retry_policy": RetryPolicy(**limits)} if limits else {}  # type: ignore[arg-type]
    routes, clock = _models(url, names), ScaledClock(scale)
    return asked(RetryRouter(routes=routes, clock=clock, **policy))


def sync_retry_router(url: str, scale: float, names: list[str]) -> Ask:
    """The same with limits of 10 s in a thread, whose seconds are made shorter."""
    policy = RetryPolicy(
        initial_delay=1.5 / scale,
        max_delay=8 / scale,
        failover_after_wait=3 / scale,
        attempt_timeout=10 / scale,
        first_token_timeout=10 / scale,
        stall_timeout=10 / scale,
    )
    breakers: Any = {"failure_threshold": 3, "recovery_time": 10 / scale}
    router = RetryRouter(
        routes=_models(url, names), retry_policy=policy, breaker_settings=breakers
    )
    return asked(router, is_sync=True)


def with_fallbacks(url: str, _scale: float, names: list[str]) -> Ask:
    """LangChain's own: `ChatOpenAI`, whose SDK retries, `.with_fallbacks`."""
    first, *others = _models(url, names, max_retries=_RETRIES, timeout=_PATIENCE)
    return asked(first.with_fallbacks(others) if others else first)


def litellm_router(url: str, _scale: float, names: list[str]) -> Ask:
    """LiteLLM's `Router`, with a fallback for all failures and for long prompts."""
    deployments = [
        (group, {"model": f"openai/{name}", "api_base": f"{url}/v1"})
        for group, name in zip(("primary", "fallback"), names, strict=False)
    ]
    to_fallback = [{"primary": ["fallback"]}] if names[1:] else []
    router = peers.litellm_router(
        *deployments,
        fallbacks=to_fallback,
        context_window_fallbacks=to_fallback,
        num_retries=_RETRIES,
        timeout=_PATIENCE,
    )
    return asked_litellm(router)


SYSTEMS: Final[dict[str, System]] = {
    "RetryRouter, defaults": retry_router,
    "RetryRouter, limits of 10 s": partial(
        retry_router, first_token_timeout=10, stall_timeout=10
    ),
    "ChatOpenAI.with_fallbacks": with_fallbacks,
    "LiteLLM Router": litellm_router,
}
"""Those of the scorecard, by their names."""
