"""What a prompt offers to a model that follows rules: its numbers, quotes and words.

Pure, save that numbers and quotes are used up: each is handed out once, in order.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias, TypeVar

Number: TypeAlias = int | float
_T = TypeVar("_T")

# A number stands for itself: the 2 of `tool2` and of `v1.2.3` is none.
_NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w]|\.\d)")
# An apostrophe inside a word is no quote.
_QUOTES = re.compile(
    r"(?<!\w)'(?P<single>[^']+)'(?!\w)|\"(?P<double>[^\"]+)\"|`(?P<tick>[^`]+)`"
    r"|“(?P<curly>[^”]+)”|「(?P<corner>[^」]+)」"
)


class PromptWords:
    """The values that a prompt mentions.

    Args:
        text: The prompt.
    """

    def __init__(self, text: str) -> None:
        """Find the numbers and the quotes of `text`."""
        self.text = text
        self.quotes = [
            next(filter(None, match.groups())) for match in _QUOTES.finditer(text)
        ]
        self.numbers = [_number(found) for found in _NUMBER.findall(text)]

    def mentions(self, name: str) -> bool:
        """Whether `name` stands in the text as a word; case does not matter."""
        return bool(_as_word(name).search(self.text))

    def take_number(self, fits: Callable[[Number], bool]) -> Number | None:
        """The first open number that fits, which is then used up."""
        return _take(self.numbers, fits)

    def take_quote(self, fits: Callable[[str], bool]) -> str | None:
        """The first open quote that fits, which is then used up."""
        return _take(self.quotes, fits)

    def open_values(self) -> tuple[list[Number], list[str]]:
        """The numbers and the quotes that are not used up, for `reopen`."""
        return self.numbers.copy(), self.quotes.copy()

    def reopen(self, values: tuple[list[Number], list[str]]) -> None:
        """Go back to the moment of `open_values`."""
        self.numbers, self.quotes = values


def positions(name: str, text: str) -> list[int]:
    """Where `name` stands in `text` as a word; case does not matter."""
    return [match.start() for match in _as_word(name).finditer(text)]


def _as_word(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(name)}(?!\w)", re.IGNORECASE)


def _number(text: str) -> Number:
    return float(text) if "." in text else int(text)


def _take(values: list[_T], fits: Callable[[_T], bool]) -> _T | None:
    found = next((value for value in values if fits(value)), None)
    if found is not None:
        values.remove(found)
    return found
