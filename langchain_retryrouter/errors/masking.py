"""Keys that must not be shown, out of what an error says.

Servers, proxies and HTTP libraries quote what they were sent. Whoever knows the key
takes it out before the error leaves its room: a traceback, a log and a trace print all
that an error and what led to it say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from langchain_retryrouter import _json
from langchain_retryrouter.errors import RetryRouterError

MASK: Final = "***"
SHORTEST_SECRET: Final = 8
"""A shorter key, such as the "EMPTY" of local servers, is no secret, and is found in
every other word."""
_CUT: Final = "…"
_SAID: Final = ("message", "body", "details")


class Masked:
    """Within it, what leaves as an error of ours says none of these secrets."""

    def __init__(self, *secrets: str) -> None:
        """Of what is too short to be one, nothing is hidden."""
        self._secrets = {one for one in secrets if len(one) >= SHORTEST_SECRET}

    def __enter__(self) -> None:
        """Nothing has been said yet."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        """Hide them."""
        if isinstance(error, RetryRouterError):
            mask(self._secrets, error)


def mask(secrets: Iterable[str], error: BaseException | None) -> None:
    """Take `secrets` out of all that an error, and what led to it, says."""
    secrets = set(secrets)
    seen: set[int] = set()
    while secrets and error is not None and id(error) not in seen:
        seen.add(id(error))
        mask_one(error, lambda text: hidden(secrets, text))
        error = error.__cause__ or error.__context__


def mask_one(error: BaseException, hide: Callable[[str], str]) -> None:
    """Let `hide` rewrite all that an error says, and nothing of what led to it."""
    error.args = tuple(_rewritten(_json.cut(told), hide) for told in error.args)
    for name in _SAID:
        if isinstance(told := vars(error).get(name), str | dict | list):
            setattr(error, name, _rewritten(_json.cut(told), hide))


def hidden(secrets: Iterable[str], text: str) -> str:
    """`text`, with stars where it says one of `secrets`."""
    for secret in secrets:
        text = _hidden(secret, text)
    return text


def _rewritten(value: Any, hide: Callable[[str], str]) -> Any:
    """`value`, text or JSON, with its texts as `hide` makes them."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {
            _rewritten(name, hide): _rewritten(item, hide)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_rewritten(item, hide) for item in value]
    return value


def _hidden(secret: str, text: str) -> str:
    text = text.replace(secret, MASK)
    if _CUT in text:
        # An excerpt may have ended in the middle of it.
        for length in range(len(secret) - 1, SHORTEST_SECRET - 1, -1):
            text = text.replace(f"{secret[:length]}{_CUT}", f"{MASK}{_CUT}")
    return text
