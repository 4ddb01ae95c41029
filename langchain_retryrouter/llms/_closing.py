"""Letting go of streams: closing them where they can be closed.

This file does not know what is asked or answered.
"""

from __future__ import annotations

import contextlib
from typing import Any


def closing(chunks: Any) -> contextlib.AbstractContextManager[Any]:
    """Closes a generator behind the `with`; any other iterable it leaves alone."""
    has_end = hasattr(chunks, "close")
    return contextlib.closing(chunks) if has_end else contextlib.nullcontext(chunks)


def aclosing(chunks: Any) -> contextlib.AbstractAsyncContextManager[Any]:
    """Async twin of `closing`."""
    has_end = hasattr(chunks, "aclose")
    return contextlib.aclosing(chunks) if has_end else contextlib.nullcontext(chunks)
