"""A request's head in the words of HTTP/1.1, for whoever writes requests itself."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final

SMALL_BODY: Final = 65_536
"""Bytes of a body up to which one write with the head is enough.

The kernel, and an event loop, take as much at once; what is larger is not copied.
"""


def request_head(method: str, target: str, headers: Iterable[tuple[str, str]]) -> bytes:
    """A request up to its body (RFC 9112, sections 3 and 5).

    Args:
        method: Such as `POST`.
        target: The path, or the whole URL for a proxy.
        headers: Names and values, the body's length among them.

    Raises:
        ValueError: For what would end a line before its time. It is not named, since it
            may be a key.
    """
    return _lines([f"{method} {target} HTTP/1.1", *_told(headers)]) + b"\r\n"


def more_head(head: bytes, headers: Iterable[tuple[str, str]]) -> bytes:
    """A `request_head` with more headers.

    Args:
        head: As it was.
        headers: Names and values.

    Raises:
        ValueError: As `request_head` does.
    """
    return head[:-2] + _lines(_told(headers)) + b"\r\n"


def is_interim(status: int) -> bool:
    """Whether an answer only says that one is to come (RFC 9110, section 15.2)."""
    return status // 100 == 1 and status != HTTPStatus.SWITCHING_PROTOCOLS


def _told(headers: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{name}: {value}" for name, value in headers]


def _lines(lines: list[str]) -> bytes:
    told = "".join(lines)
    if not (told.isascii() and told.isprintable()):
        msg = "the address or a header has a character that no request can carry"
        raise ValueError(msg)
    return "\r\n".join([*lines, ""]).encode()
