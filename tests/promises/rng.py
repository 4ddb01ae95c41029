"""Dice that fall alike for the same seed, so that a finding can be thrown again."""

from __future__ import annotations

from random import Random  # noqa: TID251 - seeded, and handed in


def seeded(seed: int) -> Random:
    """Dice of this seed."""
    return Random(seed)  # noqa: S311 - nothing secret is drawn
