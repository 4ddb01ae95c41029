"""The command line: the demo, the gateway, the explanation."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from rich.console import Console

from langchain_retryrouter import __version__, cli
from langchain_retryrouter.testing import FakeClock


def _run_demo() -> str:
    screen = io.StringIO()
    cli.run_demo(Console(file=screen, width=120, color_system=None))
    return screen.getvalue()


def test_the_demo_shows_each_fault_its_wait_and_the_answer(
    no_real_waits: FakeClock,
) -> None:
    """Each scripted fault is a line with the attempt, what went wrong, and the wait."""
    shown = _run_demo()
    for fault in (
        "rate limit (Retry-After 1)",
        "connection",
        "unavailable",
        "interrupted",
    ):
        assert fault in shown
    assert shown.count("waits") == len(no_real_waits.sleeps)
    assert "It is Paris." in shown
    assert "GPTRouterStreamInterruptedError" in shown
    assert "claude-sonnet" in shown


def test_the_demo_ends_with_a_table_of_what_each_call_took(
    no_real_waits: FakeClock,
) -> None:
    """The table has a row a call, and its attempts add up to the server's requests."""
    _, calls, requests, table = re.split(r"(\d+) calls, (\d+) requests", _run_demo())
    heading, *rows = [
        [cell.strip() for cell in re.split("[│┃]", line)[1:-1]]
        for line in table.splitlines()
        if line.startswith(("│", "┃"))
    ]
    assert heading == ["call", "attempts", "waited", "served by", "tokens"]
    assert rows[0][0] == "1. chain.invoke"
    assert rows[-1][0] == "7. OpenAI.invoke"
    assert len(rows) == int(calls)
    assert sum(int(row[1]) for row in rows) == int(requests)
    assert len(no_real_waits.sleeps) == int(requests) - int(calls)


def test_demo_runs_as_a_command(
    no_real_waits: FakeClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """`retryrouter demo` exits with 0."""
    assert cli.main(["demo"]) == 0
    assert "calls" in capsys.readouterr().out
    assert no_real_waits.sleeps


def test_explain_prints_the_worst_case(capsys: pytest.CaptureFixture[str]) -> None:
    """`explain` says requests and seconds before anything runs."""
    assert cli.main(["explain", "--max-retries", "1", "--attempt-timeout", "10"]) == 0
    printed = capsys.readouterr().out
    assert "before retry 1: up to 1.50 s" in printed
    assert "at most 2 requests" in printed


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
        (["gateway", "--script", "700"], "700 is not a final HTTP status"),
        (["gateway", "--port", "70000"], "from 0 to 65535"),
        (["explain", "--max-retries", "-1"], "max_retries"),
    ],
)
def test_bad_arguments_are_named(
    capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    """A value that cannot be used ends with exit code 2 and a message that names it."""
    assert cli.main(arguments) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(
    ("missing", "command", "hint"),
    [
        ("h11", "explain", ""),
        ("h11", "demo", 'pip install "langchain-retryrouter[cli]"'),
        ("rich", "trace", ""),
        ("rich", "status", 'pip install "langchain-retryrouter[cli]"'),
        ("redis", "status", "pip install 'langchain-retryrouter[redis]'"),
    ],
)
def test_what_a_command_needs_is_named(
    tmp_path: Path, missing: str, command: str, hint: str
) -> None:
    """A package that is not installed is a message and code 1, or is not needed."""
    file = tmp_path / "calls.jsonl"
    file.write_text('{"attempts": []}')
    asked = {"trace": [str(file)], "status": ["--store", "redis://localhost:1/0"]}
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from langchain_retryrouter.cli import main\n"
        f"sys.exit(main({[command, *asked.get(command, [])]}))"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ran.returncode == bool(hint)
    assert hint in ran.stderr
    assert "Traceback" not in ran.stderr


def test_the_gateway_serves_its_script_until_it_is_told_to_stop() -> None:
    """`gateway` plays its script over HTTP and ends with 0 on SIGTERM."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "langchain_retryrouter.cli",
            "gateway",
            "--script",
            "503:7",
        ],
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
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0
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
def test_trace_prints_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    """What a terminal or a file cannot show is replaced, and the code stays 0."""
    file = tmp_path / "calls.jsonl"
    line = {"attempt": 1, "outcome": "ok", "seconds": 1, "route": "Zoë ☃ \ud800"}
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps({"attempts": [line]}).encode())
    ran = subprocess.run(
        [sys.executable, "-m", "langchain_retryrouter.cli", "trace", str(file)],
        capture_output=True,
        check=True,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PYTHONIOENCODING": encoding,
        },
    )
    bar = "━" if encoding == "utf-8" else "="
    assert bar * 9 in ran.stdout.decode(encoding)
    assert ran.stderr == b""


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"], ids=["plain", "rich"])
@pytest.mark.parametrize("command", ["trace", "explain", "check", "--help"])
def test_a_closed_pipe_ends_a_command_quietly(
    tmp_path: Path, command: str, encoding: str
) -> None:
    """`| head` closes its end when it has enough; the code is that of SIGPIPE."""
    file = tmp_path / "calls.jsonl"
    line = {"attempts": [{"attempt": 1, "outcome": "ok", "seconds": 1, "route": "r"}]}
    file.write_text(f"{json.dumps(line)}\n" * 500)
    config = tmp_path / "router.json"
    config.write_text('{"routes": [{"model": "openai:m", "params": {"api_key": "k"}}]}')
    given = {"trace": [str(file)], "check": [str(config)]}.get(command, [])
    reader, writer = os.pipe()
    os.close(reader)
    ran = subprocess.run(
        [sys.executable, "-m", "langchain_retryrouter.cli", command, *given],
        stdout=writer,
        stderr=subprocess.PIPE,
        check=False,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(sys.path),
            "PYTHONIOENCODING": encoding,
            "PYTHONUNBUFFERED": "",
        },
    )
    os.close(writer)
    assert ran.stderr == b""
    assert ran.returncode == 141


def test_trace_of_a_missing_file_is_a_clear_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that cannot be read is code 2, and the message names it."""
    missing = tmp_path / "missing.jsonl"
    assert cli.main(["trace", str(missing)]) == 2
    assert str(missing) in capsys.readouterr().err


def test_trace_does_not_write_over_its_logs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page in the place of the logs is code 2, and the logs stay."""
    file = tmp_path / "calls.jsonl"
    file.write_text('{"attempts": []}')
    assert cli.main(["trace", str(file), "--html", str(file)]) == 2
    assert "give another one" in capsys.readouterr().err
    assert file.read_text() == '{"attempts": []}'


def test_the_demo_ends_with_a_timeline(no_real_waits: FakeClock) -> None:
    """The last lines are the first call's attempts, as `AttemptLog` draws them."""
    del no_real_waits
    *_, headline, first, _, _, last = _run_demo().splitlines()
    assert headline.startswith("ok from claude-sonnet: ")
    assert "rate_limit 429" in first
    assert last.split()[:2] == ["4", "claude-sonnet"]
