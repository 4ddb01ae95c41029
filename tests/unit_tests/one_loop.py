"""Calls of foreign models in one event loop, and the end of their connections."""

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.unit_tests.conftest import Twin

_SYNC = ("http_client", "root_client", "_client")
_ASYNC = ("http_async_client", "root_async_client", "_async_client")


@dataclass(frozen=True)
class OneLoop(Twin):
    """Sync calls, or async calls in one event loop; closes the clients of models."""

    runner: asyncio.Runner
    models: list[Any] = field(default_factory=list)

    def result_of(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(coroutine)

    def closes(self, *models: Any) -> None:
        """Have the clients of these models closed at the end of the test."""
        self.models.extend(models)

    def close(self) -> None:
        """Close them: the SDKs' own way to do so is another for each."""
        for model in self.models:
            for name in _SYNC if not self.is_async else ():
                if client := getattr(model, name, None):
                    client.close()
            for name in _ASYNC if self.is_async else ():
                if client := getattr(model, name, None):
                    close = getattr(client, "aclose", None) or client.close
                    self.runner.run(close())


@pytest.fixture(params=["sync", "async"])
def calls(request: pytest.FixtureRequest) -> Iterator[OneLoop]:
    """Run the test twice: with sync calls, and with async calls."""
    with asyncio.Runner() as runner:
        one_loop = OneLoop(request.param == "async", runner)
        yield one_loop
        one_loop.close()
