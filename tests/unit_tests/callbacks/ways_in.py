"""Every way in which LangChain lets a chat model be called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig

from tests.unit_tests.conftest import Twin

from .flaky_model import FlakyChatModel

Way: TypeAlias = Callable[[Twin, FlakyChatModel, RunnableConfig], Any]


def _streaming(twin: Twin, model: FlakyChatModel, config: RunnableConfig) -> Any:
    return twin.invoke(model.model_copy(update={"streaming": True}), "hi", config)


WAYS: dict[str, Way] = {
    "invoke": lambda twin, model, config: twin.invoke(model, "hi", config),
    "invoke, streaming=True": _streaming,
    "invoke, stream=True": lambda twin, model, config: twin.invoke(
        model.bind(stream=True), "hi", config
    ),
    "stream": lambda twin, model, config: twin.stream(model, "hi", config),
    "batch": lambda twin, model, config: twin.batch(model, ["hi"], config),
    "generate": lambda twin, model, config: twin.generate(
        model,
        [[AIMessage("hi")]],
        callbacks=config.get("callbacks"),
        tags=config.get("tags"),
        run_id=config.get("run_id"),
    ),
    "a bound model": lambda twin, model, config: twin.stream(
        model.bind(anything=1), "hi", config
    ),
    "a configured model": lambda twin, model, config: twin.stream(
        model.with_config(config), "hi"
    ),
}
