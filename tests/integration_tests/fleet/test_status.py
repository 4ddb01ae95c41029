"""`retryrouter status` over a real Redis server."""

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
    cli,
)
from langchain_retryrouter.stores import RedisStore
from langchain_retryrouter.testing import FaultyGateway, Status
from tests.support.models import chat_openai
from tests.support.redis_server import RedisServer
from tests.unit_tests.stores.conftest import eventually, states

# Python does not turn SIGINT into an exception where its parent ignores the signal.
_CODE = (
    "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from langchain_retryrouter.cli import main; sys.exit(main())"
)
_PROGRAM = [sys.executable, "-c", _CODE]


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")


def _status(url: str, *options: str) -> int:
    return cli.main(["status", "--store", url, *options])


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
        # What the store's thread sends arrives a little later.
        eventually(lambda: "open" in states(store) and len(store.snapshot()) == 3)
        shown = subprocess.run(
            [*_PROGRAM, "status", "--store", redis_server.url],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        ).stdout
    line = next(line for line in shown.splitlines() if "main [eu]" in line)
    assert "open" in line
    assert re.search(r"for 1?\d\d\.\d s, until \d\d:\d\d:\d\d", shown)
    assert f"by {store.process}" in shown
    assert "tokens: 500" in shown
    store.close()


def test_status_of_an_unused_store(
    redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store in which nothing was used says so."""
    assert _status(redis_server.url, "--namespace", "another") == 0
    assert "nothing was used within an hour" in capsys.readouterr().out


def test_status_of_a_dead_store(
    redis_server: RedisServer, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store that does not answer is an error that names its address."""
    redis_server.kill()
    assert _status(redis_server.url) == 1
    assert f"redis://127.0.0.1:{redis_server.port}/0" in capsys.readouterr().out


def test_status_watches_until_it_is_stopped(redis_server: RedisServer) -> None:
    """With --watch the table comes again and again, until Ctrl-C."""
    options = ["--store", redis_server.url, "--watch", "0.1"]
    with subprocess.Popen(
        [*_PROGRAM, "status", *options], stdout=subprocess.PIPE, text=True
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
    redis_server: RedisServer, capsys: pytest.CaptureFixture[str], seconds: str
) -> None:
    """An interval that is not above 0 is an error that names it."""
    assert _status(redis_server.url, f"--watch={seconds}") == 2
    assert f"not {seconds}" in capsys.readouterr().err
