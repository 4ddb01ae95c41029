"""Servers that take no request: listeners on the loopback, and no gateways."""

import contextlib
import socket
from collections.abc import Iterator

A_LONG_PROMPT = "word " * 800_000
"""4 MB: more than such a listener, and the kernel before it, takes off one's hands."""


@contextlib.contextmanager
def full() -> Iterator[str]:
    """The address of one that nobody gets through to: its queue is taken."""
    with contextlib.ExitStack() as stack:
        listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        stack.enter_context(listener)
        for _ in range(2):
            waiting = stack.enter_context(socket.socket())
            waiting.settimeout(0)
            waiting.connect_ex(listener.getsockname())
        yield _address(listener)


@contextlib.contextmanager
def deaf() -> Iterator[str]:
    """The address of one whose kernel takes connections, and that reads nothing."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        yield _address(listener)


def _address(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"
