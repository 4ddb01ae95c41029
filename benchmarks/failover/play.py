"""Plays a scenario to a system: two providers, the calls, and what both ends saw."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeAlias

from benchmarks.failover.evidence import (
    BACKUP,
    PRIMARY,
    TEXT,
    Attempt,
    Call,
    Evidence,
    Reply,
)
from benchmarks.failover.scenarios import (
    BACKUP_PROMPT_TOKENS,
    RUN_LENGTH,
    Scenario,
)
from langchain_retryrouter._retry.clock import SYSTEM_CLOCK, Clock
from langchain_retryrouter.testing import (
    Answer,
    FaultyGateway,
    RecordedRequest,
    Status,
    Usage,
)

_PRIMARY_PROMPT_TOKENS = 111


@dataclass(frozen=True)
class Providers:
    """What a system is told: where its models are, and how fast the time runs."""

    primary_url: str
    backup_url: str
    scale: float
    clock: Clock


async def _nothing() -> None:
    pass


@dataclass(frozen=True)
class Contestant:
    """A system, ready to be asked."""

    ask: Callable[[], Awaitable[Reply]]
    aclose: Callable[[], Awaitable[None]] = _nothing


System: TypeAlias = Callable[[Providers], Contestant]


class Model:
    """Says `TEXT`; goes on with it where a last message of the assistant's ends."""

    def __init__(self, prompt_tokens: int) -> None:
        """A model whose prompts are told to have so many tokens."""
        self._prompt_tokens = prompt_tokens

    def __call__(self, request: RecordedRequest) -> Answer:
        """The answer, and a usage by which its provider is known."""
        last = request.payload["messages"][-1]
        begun = last["content"] if last["role"] == "assistant" else ""
        text = TEXT.removeprefix(begun)
        usage = Usage(self._prompt_tokens, len(text.split()))
        return Answer(text, usage=usage)


class _Stage:
    def __init__(
        self, primary: FaultyGateway, backup: FaultyGateway, scale: float, clock: Clock
    ) -> None:
        self.primary, self.backup = primary, backup
        self.scale, self.clock = scale, clock
        self.began = clock.monotonic()

    def seconds(self, seconds: float) -> float:
        return seconds * self.scale

    def now(self) -> float:
        return (self.clock.monotonic() - self.began) / self.scale

    def attempts(self) -> tuple[Attempt, ...]:
        attempts = [
            Attempt((request.at - self.began) / self.scale, name, _told(request))
            for name, gateway in ((PRIMARY, self.primary), (BACKUP, self.backup))
            for request in gateway.requests
        ]
        return tuple(sorted(attempts, key=lambda one: one.at))


def _told(request: RecordedRequest) -> str:
    step = request.step
    return str(step.code) if isinstance(step, Status) else type(step).__name__


async def play(
    scenario: Scenario,
    system: System,
    *,
    scale: float,
    clock: Clock = SYSTEM_CLOCK,
    curtain: Callable[[], Awaitable[None]] = _nothing,
) -> Evidence:
    """What is seen when `system` goes through `scenario`.

    Args:
        scenario: The fault.
        system: Builds the contestant over the two providers.
        scale: What all times are multiplied by.
        clock: What the calls are paced by; a contestant may go by it as well.
        curtain: Awaited when all is built, before the time of the scenario begins.
    """
    async with (
        FaultyGateway(answer=Model(_PRIMARY_PROMPT_TOKENS)) as primary,
        FaultyGateway(answer=Model(BACKUP_PROMPT_TOKENS)) as backup,
    ):
        contestant = system(
            Providers(primary.openai_url, backup.openai_url, scale, clock)
        )
        await curtain()
        stage = _Stage(primary, backup, scale, clock)
        scenario.prepare(stage)
        calls = await _calls(scenario, contestant, stage)
        attempts = stage.attempts()
        afterwards = None
        if scenario.is_tried_again:
            afterwards = await _call(contestant, stage)
        await contestant.aclose()
        return Evidence(tuple(calls), attempts, afterwards)


async def _calls(
    scenario: Scenario, contestant: Contestant, stage: _Stage
) -> list[Call]:
    tasks: list[asyncio.Task[Call]] = []
    for number in range(scenario.calls):
        await _until(number * scenario.pace, stage)
        tasks.append(asyncio.create_task(_call(contestant, stage)))
        if stage.clock is not SYSTEM_CLOCK:
            # Whose time jumps with every wait: the next call would jump for this one.
            await tasks[-1]
    return await asyncio.gather(*tasks)


async def _until(moment: float, stage: _Stage) -> None:
    early = moment - stage.now()
    if early > 0:
        await stage.clock.asleep(stage.seconds(early))


async def _call(contestant: Contestant, stage: _Stage) -> Call:
    began = stage.now()
    reply, error = None, None
    limit = asyncio.timeout(stage.seconds(RUN_LENGTH))
    try:
        async with limit:
            reply = await contestant.ask()
    except Exception as caught:  # noqa: BLE001 - whatever a system raises is its answer
        if not limit.expired():
            error = _tell(caught)
    return Call(began, stage.now() - began, reply, error)


def _tell(error: Exception) -> str:
    status, code = (getattr(error, name, None) for name in ("status_code", "code"))
    facts = " ".join(str(fact) for fact in (status, code) if fact)
    said = [type(error).__name__, f" [{facts}]" if facts else "", f": {error}"]
    return "".join(said).removesuffix(": ")
