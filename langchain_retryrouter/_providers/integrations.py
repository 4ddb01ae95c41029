"""One retry owner: a route's model sends each request once, or it is said aloud.

A model that repeats by itself multiplies with the router around it: three times three
requests for one answer, and waits that no deadline knows. Where its class has a clean
way to stop that, a copy is made that does not repeat; whoever handed the model over
keeps it as it was. Classes are told by name, so that no SDK is imported that nobody
uses.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from langchain_core.language_models.chat_models import BaseChatModel

from langchain_retryrouter.policy import effective_policy


class RetriesDisabled(NamedTuple):
    """A model as a route may have it.

    Attributes:
        model: The model itself if it was quiet; a copy if it could be made so.
        complaint: What could not be quietened, and what to do; None if all was.
        taken: What was turned off, such as `max_retries=2`; empty if nothing was.
        requests: Requests that one attempt sends at the most.
        waited: Seconds that one attempt waits between them at the most, where the class
            tells.
    """

    model: BaseChatModel
    complaint: str | None = None
    disabled_retries: str = ""
    requests: int = 1
    waited: float = 0.0


def disable_retries(model: BaseChatModel) -> RetriesDisabled:
    """A model that sends each request once, as far as its class allows.

    Args:
        model: Any chat model; it is not changed.
    """
    names = {f"{cls.__module__}.{cls.__name__}" for cls in type(model).__mro__}
    for name, way in _WAYS.items():
        if name in names:
            return way(model)
    return _unknown(model)


def _gateway(model: Any) -> RetriesDisabled:
    """`GPTRouter`: one pass through its list of models, and no retries of the gateway.

    The gateway repeats three times by default where the model itself does not.
    """
    models = len(model.models_priority_list) if model.failover else 1
    retries = min(model.max_retries, models - 1)
    disabled_retries = []
    if retries != model.max_retries:
        disabled_retries.append(f"max_retries={model.max_retries}")
    if model.gateway_max_retries:
        disabled_retries.append(f"gateway_max_retries={model.gateway_max_retries}")
    update = {"max_retries": retries, "gateway_max_retries": 0}
    return RetriesDisabled(
        model.model_copy(update=update),
        disabled_retries=", ".join(disabled_retries),
        requests=retries + 1,
        waited=effective_policy(model.retry_policy, retries).explain().waited,
    )


def _nested(model: Any) -> RetriesDisabled:
    """`RetryRouter`: it is asked to be one, so it stays as it is."""
    worst = model.explain()
    retries = model.retry_policy.max_retries
    if not retries:
        return RetriesDisabled(model, requests=worst.requests, waited=worst.waited)
    complaint = (
        f"is a RetryRouter that repeats by itself (max_retries={retries}), up to"
        f" {worst.requests} requests for one attempt; give it"
        " RetryPolicy(max_retries=0), or put its routes into this router"
    )
    return RetriesDisabled(
        model, complaint, requests=worst.requests, waited=worst.waited
    )


def _openai(model: Any) -> RetriesDisabled:
    """`ChatOpenAI` and its kind: other clients over the same connections.

    The SDK's `with_options` shares the HTTP client. A client that is not there yet is
    made of the field.
    """
    update: dict[str, Any] = {"max_retries": 0}
    disabled_retries = 0
    for root, resource in (
        ("root_client", "client"),
        ("root_async_client", "async_client"),
    ):
        client, used = getattr(model, root, None), getattr(model, resource, None)
        if client is None and used is None:
            continue
        owner = getattr(used, "_client", None)
        if owner is None or owner is not client:
            retries = getattr(owner, "max_retries", None)
            if retries == 0:
                continue
            complaint = (
                f"was given a {resource} of its own, which may repeat by itself; build"
                " that with max_retries=0"
            )
            return RetriesDisabled(model, complaint, requests=_attempts(retries))
        once = client.with_options(max_retries=0)
        update |= {root: once, resource: once.chat.completions}
        disabled_retries = max(disabled_retries, client.max_retries)
    if not disabled_retries and not model.max_retries:
        return RetriesDisabled(model)
    told = f"max_retries={disabled_retries or model.max_retries}"
    return RetriesDisabled(model.model_copy(update=update), disabled_retries=told)


_ANTHROPICS: Final = ("_client", "_async_client")


def _anthropic(model: Any) -> RetriesDisabled:
    """`ChatAnthropic`: clients are made of the field when they are first used."""
    for name in ("_client_params", *_ANTHROPICS):
        home = next(cls for cls in type(model).__mro__ if name in vars(cls))
        if not home.__module__.startswith("langchain_anthropic."):
            return _unknown(model)  # A subclass that makes its clients in its own way.
    if not model.max_retries:
        return RetriesDisabled(model)
    copy = model.model_copy(update={"max_retries": 0})
    # What the copy was made of may have clients already, and these the connections.
    vars(copy).pop("_client_params", None)
    for name in _ANTHROPICS:
        if name in vars(copy):
            vars(copy)[name] = vars(copy)[name].with_options(max_retries=0)
    return RetriesDisabled(copy, disabled_retries=f"max_retries={model.max_retries}")


def _unknown(model: BaseChatModel) -> RetriesDisabled:
    retries = getattr(model, "max_retries", None)
    if _attempts(retries) == 1:
        return RetriesDisabled(model)
    complaint = (
        f"repeats by itself (max_retries={retries}), and its retries multiply with the"
        f" router's; build that {type(model).__name__} with max_retries=0"
    )
    return RetriesDisabled(model, complaint, requests=_attempts(retries))


def _attempts(retries: Any) -> int:
    is_number = isinstance(retries, int) and not isinstance(retries, bool)
    return 1 + max(0, retries) if is_number else 1


_WAYS: Final[dict[str, Callable[[Any], RetriesDisabled]]] = {
    "langchain_retryrouter.chat_models.gpt_router.GPTRouter": _gateway,
    "langchain_retryrouter.chat_models.retry_router.RetryRouter": _nested,
    "langchain_openai.chat_models.base.BaseChatOpenAI": _openai,
    "langchain_anthropic.chat_models.ChatAnthropic": _anthropic,
}
