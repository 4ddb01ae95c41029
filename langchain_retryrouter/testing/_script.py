"""Which step answers which request.

A model's own steps come first: its script, then its `always`. What they leave over
falls to the steps of the server, then to a healthy answer. Safe to share between
threads.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .steps import HEALTHY, ScriptedStep, Step

if TYPE_CHECKING:
    from .recorded_request import RecordedRequest


@dataclass(slots=True)
class _Steps:
    once: deque[ScriptedStep] = field(default_factory=deque)
    always: ScriptedStep | None = None

    def next(self) -> ScriptedStep | None:
        return self.once.popleft() if self.once else self.always


class Scripts:
    """The scripts of one gateway."""

    def __init__(self) -> None:
        """Start without any: everything is healthy."""
        self._by_model: dict[str | None, _Steps] = {}
        self._lock = threading.Lock()

    def script(self, steps: Iterable[ScriptedStep], model: str | None) -> None:
        """Set the next steps of `model`, or of the server; those still open go."""
        checked = deque(_checked(step) for step in steps)
        with self._lock:
            self._by_model.setdefault(model, _Steps()).once = checked

    def always(self, step: ScriptedStep, model: str | None) -> None:
        """Set the step for ever after the script of `model`, or of the server."""
        checked = _checked(step)
        with self._lock:
            self._by_model.setdefault(model, _Steps()).always = checked

    def step_for(self, request: RecordedRequest) -> Step:
        """Take the step that answers `request`."""
        if not self._by_model:
            return HEALTHY
        with self._lock:
            step = self._take(request.model)
        # The caller's function runs outside the lock: it may well script the next step.
        return step if isinstance(step, Step) else step(request)

    def _take(self, model: str | None) -> ScriptedStep:
        for name in (model, None):
            steps = self._by_model.get(name)
            if steps is not None and (step := steps.next()) is not None:
                return step
        return HEALTHY


def _checked(step: ScriptedStep) -> ScriptedStep:
    if isinstance(step, type):
        name = step.__name__
        msg = f"{name} is a class, a script takes its instances: {name}()"
        raise TypeError(msg)
    if not isinstance(step, Step) and not callable(step):
        msg = f"{step!r} is neither a step nor a function that picks one"
        raise TypeError(msg)
    return step
