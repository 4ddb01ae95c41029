"""Every error class there is, for tests that must not miss one."""

from __future__ import annotations

from types import ModuleType

from langchain_retryrouter import errors
from langchain_retryrouter._gptrouter import errors as gpt_router
from langchain_retryrouter._gptrouter.errors import (
    GPT_ROUTER_ERRORS,
    GPT_ROUTER_STREAM_ERRORS,
)
from langchain_retryrouter._openai import errors as openai
from langchain_retryrouter._openai.errors import OPENAI_ERRORS

FAMILIES: dict[str, errors.ErrorFamily] = {
    "base": errors.BASE_ERRORS,
    "gpt_router": GPT_ROUTER_ERRORS,
    "gpt_router, in a stream": GPT_ROUTER_STREAM_ERRORS,
    "openai": OPENAI_ERRORS,
}


def _classes_of(module: ModuleType) -> list[type[errors.RetryRouterError]]:
    return [
        value
        for name, value in vars(module).items()
        if isinstance(value, type)
        and issubclass(value, errors.RetryRouterError)
        and value.__module__ == module.__name__
        and not name.startswith("_")
    ]


BASE_CLASSES = [c for c in _classes_of(errors) if c is not errors.RetryRouterError]
GPT_ROUTER_CLASSES = _classes_of(gpt_router)
OPENAI_CLASSES = _classes_of(openai)
ALL_CLASSES = [*BASE_CLASSES, *GPT_ROUTER_CLASSES, *OPENAI_CLASSES]
