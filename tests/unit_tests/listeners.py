"""Servers that take no request: listeners on the loopback, and no gateways."""

import contextlib
import socket
import threading
from collections.abc import Iterator

A_LONG_PROMPT = "word " * 800_000
"""4 MB: more than such a listener, and the kernel before it, takes off one's hands."""

_LITTLE = 65_536


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
    with _small_listener() as listener:
        yield _address(listener)


@contextlib.contextmanager
def sipping(pause: float) -> Iterator[str]:
    """The address of one that reads a little every `pause` seconds, and never answers.

    Each sip lets some of a long request through, so that a limit for one write begins
    anew.
    """
    is_over = threading.Event()
    with _small_listener() as listener:

        def sip(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                while not is_over.wait(pause) and connection.recv(_LITTLE):
                    pass

        def accept() -> None:
            with contextlib.suppress(OSError):
                while not is_over.is_set():
                    connection, _ = listener.accept()
                    connection.settimeout(60)
                    threading.Thread(target=sip, args=[connection], daemon=True).start()

        accepting = threading.Thread(target=accept, daemon=True)
        accepting.start()
        try:
            yield _address(listener)
        finally:
            is_over.set()
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join(5)


def _small_listener() -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _LITTLE)
    listener.bind(("127.0.0.1", 0))
    listener.listen(128)
    return listener


def _address(listener: socket.socket) -> str:
    return f"http://127.0.0.1:{listener.getsockname()[1]}"
