"""The model of a route: made of a string, taken out of a binding, checked.

A route asks a chat model itself, below its public methods. What LangChain puts around a
model (retries, fallbacks, a config) is refused with what to do instead.
"""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, TypeAlias, cast

from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.load.serializable import (
    Serializable,
    SerializedConstructor,
    SerializedNotImplemented,
)
from langchain_core.runnables import RunnableBinding
from pydantic import SecretStr

from langchain_retryrouter._secrets import shown

KeyFunction: TypeAlias = Callable[[], str | SecretStr | Awaitable[str | SecretStr]]
"""A function that returns a key, sync or async."""

_PUBLIC_METHODS: Final = (
    *("invoke", "ainvoke", "stream", "astream", "batch", "abatch"),
    *("generate", "agenerate", "generate_prompt", "agenerate_prompt"),
)
# What a route's model cannot be, and what it must be instead.
_REFUSED: Final = {
    "_ConfigurableModel": (
        "a fixed chat model, not the configurable one of init_chat_model() without a"
        " model: name the model there, or put each model that may be chosen into"
        " `routes`"
    ),
    "DynamicRunnable": (
        "a fixed chat model, without `configurable_fields` or"
        " `configurable_alternatives`: put each model that may be chosen into"
        " `routes`, or make the router itself configurable"
    ),
    "RunnableRetry": (
        "the chat model itself, without `with_retry`, whose retries would multiply with"
        " the router's: give the router a RetryPolicy"
    ),
    "RunnableWithFallbacks": (
        "one chat model, without `with_fallbacks`: put the model and its fallbacks"
        " into `routes`, each as a route of its own"
    ),
}


class NamedKeys(Serializable):
    """A model in the form in which `dumps` writes it, with other names for its keys."""

    model: BaseChatModel
    names: dict[str, str]

    @property
    def lc_secrets(self) -> dict[str, str]:
        """The names by the model's arguments, which `dumps` does not escape."""
        return {**self.model.lc_secrets, **self.names}

    def to_json(self) -> SerializedConstructor | SerializedNotImplemented:
        """What the model writes of itself."""
        written: Any = self.model.to_json()
        for argument in self.names.keys() & written.get("kwargs", {}).keys():
            name = self.names[argument]
            written["kwargs"][argument] = {"lc": 1, "type": "secret", "id": [name]}
        return cast("SerializedConstructor", written)


def init_model(spec: str, /, **params: Any) -> BaseChatModel:
    """The chat model of a string such as "openai:gpt-5.5"; see `init_by_name`."""
    model = init_by_name(spec, "langchain.chat_models", "init_chat_model", **params)
    return cast("BaseChatModel", model)


def init_by_name(spec: str, module: str, function: str, /, **params: Any) -> Any:
    """What a function of langchain makes of a string such as "openai:gpt-5.5"."""
    provider, name = (part.strip() for part in spec.partition(":")[::2])
    if not provider or not name:
        msg = (
            "a model must be an object, or 'provider:model' such as 'openai:gpt-5.5',"
            f" not {spec!r}"
        )
        raise ValueError(msg)
    try:
        langchain = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if not str(error.name).startswith("langchain"):
            raise
        msg = f"the model {spec!r} needs langchain: pip install langchain"
        raise ImportError(msg) from error
    argument = "model_provider" if function == "init_chat_model" else "provider"
    return getattr(langchain, function)(name, **{argument: provider}, **params)


def unbound(model: Any) -> tuple[Any, dict[str, Any]]:
    """A model without the options that were bound to it, and these options."""
    options: dict[str, Any] = {}
    while isinstance(model, RunnableBinding):
        options = {**model.kwargs, **options}
        model = model.bound
    return model, options


def model_and_options(given: Any) -> tuple[BaseChatModel, dict[str, Any]]:
    """The chat model that a route asks, and the options that were bound to it.

    What is not a chat model, or has a config that would be lost, is a TypeError.
    """
    bound = given
    while isinstance(bound, RunnableBinding):
        # Its maker gives `RunnableBinding` the keys of a config, most of them empty.
        lost = [name for name, value in bound.config.items() if value]
        if lost or bound.config_factories:
            msg = (
                "a route's model cannot have a config or listeners of its own"
                f" ({', '.join(lost) or 'with_listeners'}), since the run is the"
                " router's: use `with_config` or `with_listeners` on the router"
            )
            raise TypeError(msg)
        bound = bound.bound
    model, options = unbound(given)
    if isinstance(model, BaseChatModel):
        return model, options
    msg = (
        f"a route's model must be a LangChain chat model, not {shown(model)}; chains"
        " and LLMs cannot be routed to"
    )
    for name, advice in _REFUSED.items():
        if any(cls.__name__ == name for cls in type(model).__mro__):
            msg = f"a route's model must be {advice}"
    raise TypeError(msg)


def bypassed_method(model: BaseChatModel) -> str:
    """A warning of public methods that a user's own class overrides."""
    for name in _PUBLIC_METHODS:
        owner = next(cls for cls in type(model).__mro__ if name in vars(cls))
        # LangChain's own packages only adjust the call's options there.
        if not owner.__module__.startswith("langchain"):
            return (
                f"overrides {name} in {owner.__name__}, which is not called: override"
                " _generate, _agenerate, _stream and _astream instead"
            )
    return ""


def pool_settings(
    api_keys: Sequence[str | SecretStr | KeyFunction] | None,
    base_urls: Sequence[str] | None,
) -> list[dict[str, Any]]:
    """The key and the address of each route of a pool. No key is in a message."""
    lists: dict[str, list[Any]] = {}
    for name, values in {"api_key": api_keys, "base_url": base_urls}.items():
        if values is None:
            continue
        if isinstance(values, str) or not isinstance(values, Sequence):
            msg = f"{name}s must be a list, not {type(values).__name__}"
            raise TypeError(msg)
        plain = [
            v.get_secret_value() if isinstance(v, SecretStr) else v for v in values
        ]
        for index, value in enumerate(plain):
            is_function = name == "api_key" and callable(value)
            if not value or not (isinstance(value, str) or is_function):
                what = "empty" if value == "" else type(value).__name__
                msg = f"{name}s[{index}] must be a str, and is {what}"
                raise ValueError(msg)
        lists[name] = plain
    if not lists or not all(lists.values()):
        msg = "a pool needs api_keys=[...] or base_urls=[...], at least one of them"
        raise ValueError(msg)
    if len({len(values) for values in lists.values()}) > 1:
        msg = (
            f"a pool has one base_url for each api_key: there are"
            f" {len(lists['api_key'])} keys and {len(lists['base_url'])} addresses"
        )
        raise ValueError(msg)
    pairs = list(zip(*lists.values(), strict=True))
    if any(pair in pairs[:index] for index, pair in enumerate(pairs)):
        msg = f"{' and '.join(f'{name}s' for name in lists)} has an entry twice"
        raise ValueError(msg)
    return [dict(zip(lists, pair, strict=True)) for pair in pairs]
