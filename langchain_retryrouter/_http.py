"""A request's head in the words of HTTP/1.1, for whoever writes requests itself."""

from __future__ import annotations

from collections.abc import Iterable


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


def _told(headers: Iterable[tuple[str, str]]) -> list[str]:
    return [f"{name}: {value}" for name, value in headers]


def _lines(lines: list[str]) -> bytes:
    told = "".join(lines)
    if not (told.isascii() and told.isprintable()):
        msg = "the address or a header has a character that no request can carry"
        raise ValueError(msg)
    return "\r\n".join([*lines, ""]).encode()
