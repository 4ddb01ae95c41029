"""How busy the server was meanwhile: what a slow server takes is nobody's cost."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Final

from benchmarks.speed.measure import Bar, Measurement, Rounds
from benchmarks.speed.stub import StubServer

_MOST: Final = 50


class ServerShare:
    """What share of a core the server had while some of the contestants ran."""

    def __init__(self, server: StubServer) -> None:
        """Of this server."""
        self._server = server
        self._shares: Rounds = {}

    def of(
        self, timed: Mapping[str, Measurement], *names: str
    ) -> dict[str, Measurement]:
        """The measurements, those of `names` watched."""
        return {
            name: self._during(name, one) if name in names else one
            for name, one in timed.items()
        }

    def _during(self, name: str, measurement: Measurement) -> Measurement:
        shares = self._shares.setdefault(_row(name), [])

        def measure() -> float:
            cpu, began = self._server.cpu(), time.perf_counter()
            figure = measurement()
            seconds = time.perf_counter() - began
            shares.append(100 * (self._server.cpu() - cpu) / seconds)
            return figure

        return measure

    def rounds(self) -> Rounds:
        """The shares, without that of the warm-up."""
        return {name: shares[1:] for name, shares in self._shares.items()}


def bars(*names: str) -> tuple[Bar, ...]:
    """That the server could have done as much again while these ran."""
    return tuple(Bar(_row(name), _row(name), _MOST) for name in names)


def _row(name: str) -> str:
    return f"server busy for {name}, % of a core"
