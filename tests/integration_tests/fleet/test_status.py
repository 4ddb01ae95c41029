"""`retryrouter status` over a real Redis server."""

import os
import re
import signal
import subprocess
import sys

import pytest

from langchain_retryrouter import (
    CircuitBreaker,
    RetryBudget,
    RetryPolicy,
    RetryRouter,
    RetryRouterError,
    Route,
)
from langchain_retryrouter.stores import RedisStore
from langchain_retryrouter.testing import FaultyGateway, Status
from tests.support.models import chat_openai
from tests.support.redis_server import RedisServer

_COMMAND = [sys.executable, "-m", "langchain_retryrouter.cli", "status"]
_WIDE = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}


def _status(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*_COMMAND, "--store", url, *options],
        capture_output=True,
        text=True,
        env=_WIDE,
        check=False,
        timeout=20,
    )


def test_status_shows_what_all_processes_share(redis_server: RedisServer) -> None:
    """A breaker is shown with its reason and its end, a budget with its tokens."""
    store = RedisStore(redis_server.url)
    with FaultyGateway() as gateway:
        gateway.always(Status(429, {"retry-after": "120"}))
        router = RetryRouter(
            routes=[Route(model=chat_openai(gateway), name="main [eu]")],
            retry_policy=RetryPolicy(max_retries=0),
            budget=RetryBudget(name="team", store=store),
            store=store,
        )
        with pytest.raises(RetryRouterError):
            router.invoke("Hello?")
        closed = CircuitBreaker(name="other", store=store)
        assert not closed.is_open
        shown = ""
        for _ in range(100):  # What the store's thread sends arrives a little later.
            shown = _status(redis_server.url).stdout
            if "open" in shown and "team" in shown and "other" in shown:
                break
    line = next(line for line in shown.splitlines() if "main [eu]" in line)
    assert "open" in line
    assert re.search(r"for 1?\d\d\.\d s, until \d\d:\d\d:\d\d", shown)
    assert f"by {store.process}" in shown
    assert "tokens: 500" in shown
    store.close()


def test_status_of_an_unused_store(redis_server: RedisServer) -> None:
    """A store in which nothing was used says so."""
    result = _status(redis_server.url, "--namespace", "another")
    assert result.returncode == 0
    assert "nothing was used within an hour" in result.stdout


def test_status_of_a_dead_store(redis_server: RedisServer) -> None:
    """A store that does not answer is an error that names its address."""
    redis_server.kill()
    result = _status(redis_server.url)
    assert result.returncode == 1
    assert f"redis://127.0.0.1:{redis_server.port}/0" in result.stdout


def test_status_watches_until_it_is_stopped(redis_server: RedisServer) -> None:
    """With --watch the table comes again and again, until Ctrl-C."""
    # Python does not turn SIGINT into an exception where its parent ignores the signal.
    code = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from langchain_retryrouter.cli import main; sys.exit(main())"
    )
    options = ["status", "--store", redis_server.url, "--watch", "0.1"]
    command = [sys.executable, "-c", code, *options]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=_WIDE
    ) as process:
        assert process.stdout is not None
        times = 0
        for line in process.stdout:
            times += "nothing was used" in line
            if times == 3:
                process.send_signal(signal.SIGINT)
                break
        process.stdout.read()
        assert process.wait(10) == 0


@pytest.mark.parametrize("seconds", ["0", "-1", "nan"])
def test_status_refuses_a_wrong_interval(
    redis_server: RedisServer, seconds: str
) -> None:
    """An interval that is not above 0 is an error that names it."""
    result = _status(redis_server.url, f"--watch={seconds}")
    assert result.returncode == 2
    assert f"not {seconds}" in result.stderr
