"""Checks of the numbers and names that users give."""

from __future__ import annotations

import sys
from typing import Any


def is_number(value: Any) -> bool:
    """Whether `value` is a finite number, 0 or more; `True` and `False` are none."""
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and 0 <= value <= sys.float_info.max


def is_whole(value: Any) -> bool:
    """Whether `value` is an int, 0 or more."""
    return isinstance(value, int) and is_number(value)


def is_positive(value: Any) -> bool:
    """Whether `value` is a finite number above 0."""
    return is_number(value) and value > 0


def require(
    name: str, value: Any, allowed: str, *, is_met: bool, advice: str = ""
) -> None:
    """Check an argument.

    Raises:
        ValueError: The condition is not met. Never a TypeError, since pydantic reports
            ValueErrors only.
    """
    if not is_met:
        msg = f"{name} must be {allowed}, not {value!r}{advice}"
        raise ValueError(msg)
