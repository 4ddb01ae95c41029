"""What was seen of a scenario, from both ends: plain data, and all that is judged.

Times are seconds since the scenario began, in the scenario's own time: a run that was
scaled down is scaled up again, so that a check means the same in both.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, TypeAlias

PRIMARY, BACKUP = "gpt-primary", "gpt-backup"
"""The models, and what their providers are called in a log."""

TEXT = " ".join(f"word{number:02}" for number in range(60))
"""Every healthy answer: words that tell where they belong."""

Ending: TypeAlias = Literal["answered", "failed", "hung"]


@dataclass(frozen=True)
class Reply:
    """A whole answer, as the system handed it to its caller."""

    text: str
    model: str | None = None
    """The model that the system says has answered."""
    prompt_tokens: int | None = None
    """None when the system says nothing of usage."""


@dataclass(frozen=True)
class Call:
    """One call, seen by its caller.

    Attributes:
        began: When it was made.
        seconds: How long it took, or was waited for.
        reply: The answer, if there was one.
        error: What was raised instead, class and text.
    """

    began: float
    seconds: float
    reply: Reply | None = None
    error: str | None = None

    @property
    def ending(self) -> Ending:
        """How it ended; a call without answer or error never did."""
        if self.reply is not None:
            return "answered"
        return "hung" if self.error is None else "failed"

    @property
    def is_whole(self) -> bool:
        """Whether the answer is the healthy one, white space aside."""
        return self.reply is not None and self.reply.text.split() == TEXT.split()


@dataclass(frozen=True)
class Attempt:
    """One request, seen by a provider: which one, when, and what it did about it."""

    at: float
    provider: str
    did: str


@dataclass(frozen=True)
class Evidence:
    """All that is judged of one scenario, played once by one system.

    Attributes:
        calls: The calls, in their order.
        attempts: Both providers' logs of these, in the order of time.
        afterwards: A call that was made when the fault was over.
    """

    calls: tuple[Call, ...]
    attempts: tuple[Attempt, ...]
    afterwards: Call | None = None

    @property
    def at_primary(self) -> list[Attempt]:
        """The attempts that the faulty provider saw."""
        return [one for one in self.attempts if one.provider == PRIMARY]

    @property
    def at_backup(self) -> list[Attempt]:
        """The attempts that the healthy provider saw."""
        return [one for one in self.attempts if one.provider == BACKUP]

    @property
    def first_gap(self) -> float:
        """Seconds between the first two attempts at the primary; 0 for a single one."""
        times = (one.at for one in self.at_primary)
        return next((then - at for at, then in itertools.pairwise(times)), 0.0)

    def primary_within(self, seconds: float) -> int:
        """How many attempts the primary saw so soon after its first."""
        attempts = self.at_primary
        return sum(1 for one in attempts if one.at - attempts[0].at < seconds)
