"""The command line: the demo, the gateway, the explanation."""

import http.client
import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from langchain_retryrouter import __version__, cli
from langchain_retryrouter.stores import RedisStore, Scope
from langchain_retryrouter.testing import FakeClock


def run(
    *arguments: str, stdout: int = subprocess.PIPE, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """Run Python in a process of its own, with this path and these variables."""
    return subprocess.run(
        [sys.executable, *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables},
    )


def test_the_demo(
    no_real_waits: FakeClock,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each fault is a line, each call a row of the table; the last is a timeline.

    A proxy of the machine and its tracing are left aside.
    """
    machine = {"HTTP_PROXY": "http://127.0.0.1:1", "LANGSMITH_TRACING_V2": "true"}
    for name, value in {**machine, "no_proxy": "", "NO_PROXY": ""}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.main(["demo"]) == 0
    lines, calls, requests, rest = re.split(
        r"(\d+) calls, (\d+) requests", capsys.readouterr().out
    )
    faults = ("rate limit (Retry-After 1)", "connection", "unavailable", "interrupted")
    answers = ("It is Paris.", "GPTRouterStreamInterruptedError", "claude-sonnet")
    assert [text for text in (*faults, *answers) if text not in lines + rest] == []
    waits = len(no_real_waits.sleeps)
    assert lines.count("waits") == waits == int(requests) - int(calls)
    heading, *rows = [
        [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        for line in rest.splitlines()
        if line.startswith(("│", "┃"))
    ]
    assert heading == ["call", "attempts", "waited", "served by", "tokens"]
    assert (rows[0][0], rows[-1][0]) == ("1. chain.invoke", "7. OpenAI.invoke")
    assert len(rows) == int(calls)
    assert sum(int(row[1]) for row in rows) == int(requests)
    *_, headline, first, _, _, last = rest.splitlines()
    assert headline.startswith("ok from claude-sonnet: ")
    assert "rate_limit 429" in first
    assert last.split()[:2] == ["4", "claude-sonnet"]


def test_explain_prints_the_worst_case(capsys: pytest.CaptureFixture[str]) -> None:
    """`explain` says requests and seconds before anything runs."""
    assert cli.main(["explain", "--max-retries", "1", "--attempt-timeout", "10"]) == 0
    printed = capsys.readouterr().out
    assert "before retry 1: up to 1.50 s" in printed
    assert "at most 2 requests" in printed


def test_ctrl_c_ends_a_command_quietly(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a traceback, and with the code that shells use."""
    monkeypatch.setattr(cli, "run_demo", Mock(side_effect=KeyboardInterrupt))
    assert cli.main(["demo"]) == 130
    assert capsys.readouterr().err == ""


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints the package's version."""
    with pytest.raises(SystemExit) as exit_:
        cli.main(["--version"])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["gateway", "--script", "429,explode"], "'explode' is not a step"),
        (["gateway", "--script", "cut:x"], "'x' in 'cut:x' is not a whole number"),
        (["gateway", "--script", "429:x"], "'x' in '429:x' is not a number"),
        (["gateway", "--script", "ok:3"], "'ok' takes no number"),
        (["gateway", "--script", "malformed:0"], "at must be finite and at least 1"),
        (["gateway", "--script", "700"], "700 is not a final HTTP status"),
        (["gateway", "--port", "70000"], "from 0 to 65535"),
        (["explain", "--max-retries", "-1"], "max_retries"),
        (["trace", "no-file.jsonl"], "no-file.jsonl"),
        (["trace", __file__, "--html", __file__], "give another one"),
    ],
)
def test_bad_arguments_are_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    """A value that cannot be used ends with exit code 2 and a message that names it."""
    assert cli.main(arguments) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "works", "fails"),
    [("h11", "explain", "demo"), ("rich", "trace", "status")],
)
def test_what_a_command_needs_is_named(
    tmp_path: Path, missing: str, works: str, fails: str
) -> None:
    """A package that is not installed is a message and code 1, or is not needed."""
    file = tmp_path / "calls.jsonl"
    file.write_text('{"attempts": []}')
    given = {"trace": [str(file)], "status": ["--store", "redis://localhost:1/0"]}
    calls = [[command, *given.get(command, [])] for command in (works, fails)]
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from langchain_retryrouter.cli import main\n"
        f"sys.exit(str([main(call) for call in {calls}]))"
    )
    *told, codes = run("-c", code).stderr.decode().splitlines()
    assert codes == "[0, 1]"
    hint = 'pip install "langchain-retryrouter[cli]"'
    assert told == [f"`retryrouter {fails}` needs {missing!r}: {hint}"]


def test_a_store_without_its_package_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`status` says how to install what a store needs, with code 1."""
    monkeypatch.setitem(sys.modules, "redis", None)
    assert cli.main(["status", "--store", "redis://localhost:1/0"]) == 1
    assert "pip install 'langchain-retryrouter[redis]'" in capsys.readouterr().err


EVIL = "a\x1b[31m\x07[red]b[/]\nc\u202e"


def test_status_prints_nothing_that_a_terminal_obeys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Names and reasons that processes have written are shown in one line, as text."""
    facts: dict[str, Any] = {"state": "open", "why": EVIL, "by": EVIL, "votes": [EVIL]}
    times = {"open_for": 1.0, "paused_for": 0.0, "prober": EVIL, "lease_for": 1.0}
    scopes = [
        Scope("breaker", EVIL, {**facts, **times}, ()),
        Scope(EVIL, "b", {EVIL: EVIL}, ()),
    ]
    monkeypatch.setattr(RedisStore, "snapshot", lambda _: scopes)
    monkeypatch.setenv("COLUMNS", "150")
    status = ["status", "--store", "redis://localhost:1/0"]
    assert cli.main(status) == 0
    shown = capsys.readouterr().out
    monkeypatch.setattr(RedisStore, "snapshot", Mock(side_effect=OSError(EVIL)))
    assert cli.main(status) == 1
    error = capsys.readouterr().out
    assert shown.count("a�[31m�[red]b[/] c�") == 8
    assert "a�[31m�[red]b[/] c�" in error
    assert not set(shown + error) & {"\x1b", "\x07", "\u202e"}


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_the_gateway_serves_its_script_until_it_is_told_to_stop(
    stop: signal.Signals,
) -> None:
    """`gateway` plays its script over HTTP and ends with 0 on a signal.

    By what Windows has as well.
    """
    code = (
        "import signal, sys; del signal.pthread_sigmask, signal.sigwait\n"
        "from langchain_retryrouter.cli import main; sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "gateway", "--script", "503:7,silence:0"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    with process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[1]
        request = urllib.request.Request(  # noqa: S310
            f"{url}/v1/chat/completions",
            data=b'{"model": "m", "messages": [{"role": "user", "content": "hi"}]}',
            headers={"content-type": "application/json"},
        )
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, timeout=5)  # noqa: S310
        refused.value.close()
        with pytest.raises(http.client.RemoteDisconnected):
            urllib.request.urlopen(request, timeout=5)  # noqa: S310
        process.send_signal(stop)
        assert process.wait(60) == 0
    assert refused.value.code == 503
    assert refused.value.headers["retry-after"] == "7"


# --- timelines of a file ---


@pytest.mark.parametrize("is_page", [False, True])
def test_trace_reports_bad_lines_and_shows_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], *, is_page: bool
) -> None:
    """A line that has no log is reported with its number, and the code is 1."""
    file, page = tmp_path / "calls.jsonl", tmp_path / "calls.html"
    log = {"attempts": [{"attempt": 1, "outcome": "ok", "seconds": 0.25, "route": "r"}]}
    lines = [json.dumps(log), "no json", "", json.dumps({"retryrouter": log}), "[{}]"]
    file.write_bytes(b"\n".join([*map(str.encode, lines), b"\xff", b"[" * 99_999]))
    asked = ["trace", str(file), *(["--html", str(page)] if is_page else [])]
    assert cli.main(asked) == 1
    out, err = capsys.readouterr()
    assert re.findall(r", line (\d+): ", err) == ["2", "5", "6", "7"]
    if is_page:
        assert page.read_text("utf-8").count('"route":"r"') == 2
        assert f"2 calls in {page}" in out
    else:
        assert re.findall(r"line (\d)\nok from r: 250 ms, 1 attempt", out) == ["1", "4"]
        assert "2 calls, 2 answered, 2 attempts" in out


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_trace_prints_in_any_encoding(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    encoding: str,
) -> None:
    """What a terminal or a file cannot show is replaced, and the code stays 0."""
    file = tmp_path / "calls.jsonl"
    line = {"attempt": 1, "outcome": "ok", "seconds": 1, "route": "Zoë ☃ \ud800"}
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps({"attempts": [line]}).encode())
    written = io.BytesIO()
    with io.TextIOWrapper(written, encoding=encoding) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert cli.main(["trace", str(file)]) == 0
        shown = written.getvalue().decode(encoding)
    bar = "━" if encoding == "utf-8" else "="
    assert bar * 9 in shown
    assert capsys.readouterr().err == ""


CALL = '{"attempts": [{"attempt": 1, "outcome": "ok", "seconds": 1, "route": "r"}]}\n'


@pytest.fixture
def closed_pipe() -> Iterator[int]:
    """The end that is written to of a pipe that nobody reads any more."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize(
    ("command", "encoding"),
    [
        ("trace", "ascii"),
        ("trace", "utf-8"),
        ("explain", "utf-8"),
        ("check", "utf-8"),
        ("--help", "utf-8"),
    ],
)
def test_a_closed_pipe_ends_a_command_quietly(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    closed_pipe: int,
    command: str,
    encoding: str,
) -> None:
    """`| head` closes its end when it has enough; the code is that of SIGPIPE."""
    file = tmp_path / "calls.jsonl"
    file.write_text(CALL * 500)
    config = tmp_path / "router.json"
    config.write_text('{"routes": [{"model": "openai:m", "params": {"api_key": "k"}}]}')
    given = {"trace": [str(file)], "check": [str(config)]}.get(command, [])
    with open(closed_pipe, "w", encoding=encoding, closefd=False) as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert cli.main([command, *given]) == 141
    assert capsys.readouterr().err == ""


def test_a_program_with_a_closed_pipe_ends_quietly(
    tmp_path: Path, closed_pipe: int
) -> None:
    """Nothing is left in a buffer that Python would write at its end."""
    file = tmp_path / "calls.jsonl"
    file.write_text(CALL * 500)
    trace = ("-m", cli.__name__, "trace", str(file))
    ran = run(*trace, stdout=closed_pipe, PYTHONUNBUFFERED="")
    assert ran.stderr == b""
    assert ran.returncode == 141


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
@pytest.mark.parametrize(("command", "code"), [("explain", 0), ("explain --jitter", 2)])
def test_a_command_whose_output_is_closed_ends_quietly(
    closed: str, command: str, code: int
) -> None:
    """A shell's `>&-` leaves no stream to print to; no traceback is in the other."""
    shell = f'"$0" -m {cli.__name__} {command} {closed}'
    ran = subprocess.run(
        ["/bin/sh", "-c", shell, sys.executable],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ran.returncode == code
    assert b"Traceback" not in ran.stdout + ran.stderr
