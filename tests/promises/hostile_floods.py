"""What never ends, and what is left of a process that has read it.

Run as a program it takes the names of floods, and prints what they cost: the memory of
a process is known at its highest alone, so each measurement has a process of its own.
"""

from __future__ import annotations

import gc
import json
import re
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final

from langchain_core.exceptions import ModelError
from typing_extensions import TypedDict

from langchain_retryrouter.testing import FaultyGateway
from tests.promises.hostile_models import ASKED, Asked
from tests.promises.hostile_server import (
    MIB,
    PIECE,
    HostileServer,
    Move,
    bomb,
    endless,
    head,
)
from tests.unit_tests.conftest import Twin

_STREAM: Final = "text/event-stream"
FLOODS: Final[dict[str, Move]] = {
    "a line": endless(head(kind=_STREAM), b"data: " + b"a" * PIECE),
    "an event": endless(head(kind=_STREAM), b"data: " + b"a" * 1000 + b"\n"),
    "a body": endless(head(), b" " * PIECE),
    "an error page": endless(head(status="500 Oops"), b"x" * PIECE),
    "gzip": bomb(head("content-encoding: gzip"), 31),
    "gzip in a stream": bomb(head("content-encoding: gzip", kind=_STREAM), 31),
    "deflate": bomb(head("content-encoding: deflate"), 15),
    "a header": endless(b"HTTP/1.1 200 OK\r\nx: ", b"x" * 1000),
    "headers": endless(b"HTTP/1.1 200 OK\r\n", b"x: abc\r\n"),
    "trailers": endless(head("transfer-encoding: chunked") + b"0\r\n", b"x: a\r\n"),
}
DEADLINE: Final = 10.0


class Cost(TypedDict):
    """What the floods of one process have cost."""

    mebibytes: float
    seconds: float
    untyped: list[str]
    not_well_after: list[str]


def cost_of(*names: str) -> Cost:
    """The cost of floods, named `class.way/sync/flood`, in a process of their own."""
    command = [sys.executable, "-m", "tests.promises.hostile_floods", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    cost: Cost = json.loads(done.stdout.splitlines()[-1])
    return cost


def _highest() -> float:
    if sys.platform == "darwin":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
    # On Linux `ru_maxrss` goes on, over an exec, from what the parent had.
    status = Path("/proc/self/status").read_text()
    [kibibytes] = re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
    return float(kibibytes) / 1024


def _begin_anew() -> None:
    """Let the mark of the highest be that of now; where there is no way, it stays."""
    if sys.platform != "darwin":
        Path("/proc/self/clear_refs").write_text("5")


def _error_of(asked: Asked, model: Any, twin: Twin) -> Exception | None:
    try:
        asked.ask(model, twin)
    except Exception as error:  # noqa: BLE001 - which it is, is the question
        return error
    return None


def _measure(names: list[str]) -> Cost:
    cost = Cost(mebibytes=0, seconds=0, untyped=[], not_well_after=[])
    by_id = {asked.id: asked for asked in ASKED}
    with FaultyGateway(gptrouter="hosted") as gateway:
        for asked in ASKED:  # What is imported by a first call is no flood's.
            for twin in (Twin(is_async=False), Twin(is_async=True)):
                asked.ask(asked.model(gateway.url), twin)
        for name in names:
            gc.collect()
            _begin_anew()
            before = _highest()
            _add(cost, name, by_id, gateway)
            cost["mebibytes"] = max(cost["mebibytes"], _highest() - before)
    return cost


def _add(cost: Cost, name: str, by_id: dict[str, Asked], well: FaultyGateway) -> None:
    # A function of its own: an error that is kept keeps all that was read.
    who, how, what = name.split("/")
    asked, twin = by_id[who], Twin(is_async=how == "async")
    with HostileServer(FLOODS[what], well) as server:
        model = asked.model(server.url, deadline=DEADLINE)
        began = time.monotonic()
        error = _error_of(asked, model, twin)
        took = time.monotonic() - began
        if not isinstance(error, ModelError):
            cost["untyped"].append(f"{name}: {error!r}")
        if _error_of(asked, model, twin) is not None:
            cost["not_well_after"].append(name)
    cost["seconds"] = max(cost["seconds"], took)


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1:])))  # noqa: T201 - what the caller reads
