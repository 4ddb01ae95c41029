"""`retryrouter`: see the package at work, get a misbehaving gateway, explain a policy.

Needs the extra `cli` (`pip install "langchain-retryrouter[cli]"`).
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from langchain_retryrouter._version import __version__

if TYPE_CHECKING:
    from langchain_retryrouter.testing import Step

_STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit code.

    Args:
        argv: Arguments without the program's name; None for those of the process.
    """
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except ModuleNotFoundError as error:
        if error.name not in {"rich", "h11"}:
            raise
        print(
            f"`retryrouter {arguments.command}` needs {error.name!r}:"
            ' pip install "langchain-retryrouter[cli]"',
            file=sys.stderr,
        )
        return 1
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="retryrouter",
        description="LangChain's language models, surviving misbehaving providers.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser(
        "demo", help="real calls through real faults, no key needed"
    )
    demo.set_defaults(run=_demo)

    gateway = commands.add_parser(
        "gateway", help="run a gateway that misbehaves on cue"
    )
    gateway.add_argument("--port", type=int, default=0, help="0 for any free port")
    gateway.add_argument(
        "--script",
        default="",
        metavar="STEPS",
        help="what the first requests get, such as 429,reset,503,cut:3,stall:2,ok",
    )
    gateway.set_defaults(run=_gateway)

    explain = commands.add_parser("explain", help="the worst case of a retry policy")
    explain.add_argument("--max-retries", type=int, default=2)
    explain.add_argument("--initial-delay", type=float, default=1.5, metavar="SECONDS")
    explain.add_argument("--max-delay", type=float, default=8.0, metavar="SECONDS")
    explain.add_argument("--backoff-factor", type=float, default=2.0)
    explain.add_argument(
        "--max-retry-after", type=float, default=60.0, metavar="SECONDS"
    )
    explain.add_argument("--deadline", type=float, default=None, metavar="SECONDS")
    explain.add_argument(
        "--attempt-timeout", type=float, default=None, metavar="SECONDS"
    )
    explain.set_defaults(run=_explain)
    return parser


def _demo(_arguments: argparse.Namespace) -> int:
    from rich.console import Console  # noqa: PLC0415 - an extra

    from langchain_retryrouter._demo import run_demo  # noqa: PLC0415 - needs the extra

    run_demo(Console())
    return 0


def _gateway(arguments: argparse.Namespace) -> int:
    from langchain_retryrouter.testing import FaultyGateway  # noqa: PLC0415 - an extra

    try:
        steps = [_read_step(word) for word in arguments.script.split(",") if word]
    except ValueError as error:
        print(f"retryrouter gateway: {error}", file=sys.stderr)
        return 2
    # Before the address is told: whoever reads it may send the signal at once.
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    with FaultyGateway(port=arguments.port, keep_requests=0) as gateway:
        gateway.script(*steps)
        print(f"GPTRouter  {gateway.url}\nOpenAI     {gateway.openai_url}", flush=True)
        signal.sigwait(_STOP_SIGNALS)
    return 0


def _read_step(word: str) -> Step:
    from langchain_retryrouter import testing  # noqa: PLC0415 - an extra

    name, _, amount = word.strip().partition(":")
    if name.isdigit():
        headers = {"retry-after": amount} if amount else None
        return testing.Status(int(name), headers)
    count = int(amount) if amount else 0
    known: dict[str, Step] = {
        "ok": testing.Answer(),
        "reset": testing.Reset(),
        "hangup": testing.Hangup(),
        "html": testing.HtmlPage(),
        "silence": testing.Silence(count or 120),
        "slow": testing.SlowFirstToken(count or 20),
        "stall": testing.Stall(count, 30),
        "cut": testing.Cut(count),
        "truncate": testing.Truncate(count),
        "malformed": testing.MalformedEvent(count or 1),
    }
    if name not in known:
        msg = (
            f"{word!r} is no step; say a status such as 429 or 429:2 (Retry-After), or"
            f" one of {', '.join(known)} (some take a number, as in cut:3)"
        )
        raise ValueError(msg)
    return known[name]


def _explain(arguments: argparse.Namespace) -> int:
    from langchain_retryrouter.retry import RetryPolicy  # noqa: PLC0415 - quick start

    try:
        policy = RetryPolicy(
            max_retries=arguments.max_retries,
            initial_delay=arguments.initial_delay,
            max_delay=arguments.max_delay,
            backoff_factor=arguments.backoff_factor,
            max_retry_after=arguments.max_retry_after,
            deadline=arguments.deadline,
        )
    except ValueError as error:
        print(f"retryrouter explain: {error}", file=sys.stderr)
        return 2
    for retry in range(1, policy.max_attempts):
        print(f"before retry {retry}: up to {policy.backoff(retry):.2f} s")
    print(f"{policy.explain(arguments.attempt_timeout)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
