"""aiohttp, as both rooms that send with it need it: an answer that hangs up at once.

aiohttp closes a connection politely: over TLS it says goodbye and waits for the other
side, which may be a server that has stalled, or a loop that is about to end. aiohttp
closes answers itself where a call is cancelled before its headers have come, so it is
given this class to make them with.

It imports aiohttp, so it is imported by the first async call.
"""

from __future__ import annotations

import aiohttp


class PromptResponse(aiohttp.ClientResponse):
    """An answer whose `close` does not wait."""

    def close(self) -> None:
        """Hang up, unless the answer was read to its end and its connection is free."""
        connection = self.connection
        if connection is not None and connection.transport is not None:
            connection.transport.abort()
        super().close()
