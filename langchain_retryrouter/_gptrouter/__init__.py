"""The GPTRouter gateway: `protocol` has its words, `client` sends them.

The modules that need the `gptrouter` package, and httpx with it, are loaded when they
are first used: it takes a third of the time of importing LangChain's chat models.
`chat_models.gpt_router` and `connection` reach them as attributes of this package
(PEP 562), so this is the one place where they are loaded late.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from langchain_retryrouter._gptrouter import client, messages, protocol

__all__ = ["client", "messages", "protocol"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return importlib.import_module(f"{__name__}.{name}")
