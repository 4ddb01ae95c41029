"""urllib3's connections, which send a request at once and read answers in time.

The pool, its proxies, certificates and reuse are urllib3's, and so is each connection's
way to its socket. What is done here is what goes over it: a request is one write where
urllib3 makes several of it, and an answer is one of `answers`.

It imports urllib3, so it is imported by the first sync call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from langchain_retryrouter._gptrouter.answers import Answer, TimedResponse, limit_here
from langchain_retryrouter._http.heads import SMALL_BODY, request_head


class _TimedConnection(HTTPConnection):
    response_class = TimedResponse

    def request(  # type: ignore[override] # no more than we ask of it
        self,
        method: str,
        url: str,
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
        **_options: Any,
    ) -> None:
        """Send all of a request."""
        told = {**(headers or {}), "content-length": str(len(body))}
        head = request_head(method, url, told.items())
        if self.sock is None:
            self.connect()
        sock = self.sock
        # Not what connecting may take, which is what urllib3 has set.
        sock.settimeout(limit_here.get().left())
        if len(body) <= SMALL_BODY:
            sock.sendall(head + body)
        else:
            sock.sendall(head)
            sock.sendall(body)

    def getresponse(self) -> Answer:  # type: ignore[override] # as far as pools know
        """The answer, up to its body."""
        response = TimedResponse(self.sock, method="POST")
        response.begin()
        return Answer(self, response)


class _TimedHTTPSConnection(_TimedConnection, HTTPSConnection):
    pass


def timed(pool: HTTPConnectionPool) -> HTTPConnectionPool:
    """The pool, whose connections read as `answers.read_within` says."""
    is_secure = isinstance(pool, HTTPSConnectionPool)
    connection: Any = _TimedHTTPSConnection if is_secure else _TimedConnection
    pool.ConnectionCls = connection
    return pool
