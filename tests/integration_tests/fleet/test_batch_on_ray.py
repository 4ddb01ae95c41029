"""`examples/batch_on_ray.py` with real Ray, a real Redis server and a sick provider."""

import contextlib
import json
import os
import re
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from langchain_retryrouter.testing import (
    Answer,
    FaultyGateway,
    RecordedRequest,
    Reset,
    Status,
)
from tests.support.redis_server import RedisServer

_ROOT = Path(__file__).parents[3]
_PYTHON = _ROOT / ".venvs" / "ray" / "bin" / "python"
_PROMPTS = 5_000
_PER_MINUTE = 15_000
_WORKERS = 4
_CONCURRENCY = 16
_WINDOW = 10.0  # Seconds over which the limit is measured.
_BURST = 1.0  # Seconds of the limit that may be used at once after a pause.

pytestmark = pytest.mark.timeout(480)  # Twice a minute, where nothing else runs.


def _answer(request: RecordedRequest) -> Answer:
    return Answer(f"answer to {request.messages[-1]['content']}")


def _sick(request: RecordedRequest) -> Answer | Status | Reset:
    """Every fiftieth request fails, in turn by each kind of failure."""
    faults = (Status(429, {"retry-after": "1"}), Status(503), Reset())
    number, is_well = divmod(request.number, 50)
    return _answer(request) if is_well else faults[number % 3]


@contextmanager
def _batch(
    folder: Path, gateway: FaultyGateway, redis: RedisServer
) -> Iterator[subprocess.Popen[str]]:
    """The script, started as a user would; killed if it is not over in the end."""
    command = [_PYTHON, _ROOT / "examples" / "batch_on_ray.py"]
    options = {
        "--redis": redis.url,
        "--base-url": gateway.openai_url,
        "--requests-per-minute": str(_PER_MINUTE),
        "--workers": str(_WORKERS),
        "--concurrency": str(_CONCURRENCY),
        "--cpus": "2",
    }
    with subprocess.Popen(
        [*command, folder / "prompts.jsonl", folder / "answers"]
        + [text for option in options.items() for text in option],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OPENAI_API_KEY": "any", "RAY_USAGE_STATS_ENABLED": "0"},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _read_until(process: subprocess.Popen[str], count: int) -> list[str]:
    """The script's lines, until one of them says that so many prompts are done."""
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if (found := re.match(r"(\d+) of ", line)) and int(found[1]) >= count:
            return lines
    pytest.fail("the script ended early:\n" + "".join(lines))


def _kill_a_worker() -> None:
    """End one of Ray's worker processes without warning, as the kernel does."""
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if process.read_bytes().startswith(b"ray::MapWorker"):
                os.kill(int(process.parent.name), signal.SIGKILL)
                return
    pytest.fail("there is no worker to kill")


def _answers(folder: Path) -> dict[str, str]:
    files = (folder / "answers").glob("*.json")
    return {file.stem: json.loads(file.read_text())["answer"] for file in files}


def test_a_batch_survives_what_a_cluster_goes_through(tmp_path: Path) -> None:
    """Each prompt has its one answer after a worker and then the script were killed."""
    prompts = {str(number): f"prompt {number}" for number in range(_PROMPTS)}
    with (tmp_path / "prompts.jsonl").open("w") as file:
        for name, prompt in prompts.items():
            file.write(json.dumps({"id": name, "prompt": prompt}) + "\n")
    with RedisServer() as redis_server, FaultyGateway(answer=_answer) as gateway:
        gateway.always(_sick)
        with _batch(tmp_path, gateway, redis_server) as first:
            _read_until(first, 500)
            _kill_a_worker()
            _read_until(first, 2_000)
        answered_before = _answers(tmp_path)
        requests_before = len(gateway.requests)
        with _batch(tmp_path, gateway, redis_server) as second:
            output, _ = second.communicate()
        assert second.returncode == 0, output
        requests = list(gateway.requests)

    assert _answers(tmp_path) == {
        name: f"answer to {prompt}" for name, prompt in prompts.items()
    }
    assert 2_000 <= len(answered_before) < _PROMPTS
    known = re.search(r"(\d+) answered before", output)
    assert known is not None
    assert int(known[1]) >= len(answered_before)
    assert f"{_PROMPTS:,} calls" in output

    asked_again = {one.messages[-1]["content"] for one in requests[requests_before:]}
    assert not asked_again & {prompts[name] for name in answered_before}

    served = Counter(
        one.messages[-1]["content"]
        for one in requests
        if isinstance(one.step, Answer) and one.outcome == "sent"
    )
    # What a killed process was being answered; nothing else is asked twice.
    in_flight = (1 + _WORKERS) * _CONCURRENCY
    assert served.total() - len(served) <= in_flight

    times = [one.at for one in requests]
    busiest = max(
        sum(since <= at < since + _WINDOW for at in times[place:])
        for place, since in enumerate(times)
        if place % 50 == 0
    )
    assert busiest <= _PER_MINUTE / 60 * (_WINDOW + _BURST) * 1.03
