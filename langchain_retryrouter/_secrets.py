"""Keeps secrets out of errors, and out of messages about refused arguments.

`redact_text` takes known keys out of a text, `hide_keys` what looks like a key, and
`mask_with` does so in all that the traceback of an error prints. `shown`, and the
checks for `field_validator(..., mode="wrap")`, name a refused value unless it may be a
key at the wrong place; `refuse_unknown` names a refused argument, and the one that may
be meant.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from pydantic import BaseModel, ValidationError, ValidatorFunctionWrapHandler

from langchain_retryrouter import _json

MASK: Final = "***"
SHORTEST_SECRET: Final = 8
"""A shorter key, such as the "EMPTY" of local servers, is not secret, and would be
found in every other word."""
_CUT: Final = "…"
_LONGEST_WORD: Final = 16
_MOST_NAMES: Final = 30  # That a message lists.
_NO_NUMBER: Final = "Input should be a valid number"
# Each alternative reads a text once: the texts are of servers.
_KEY: Final = re.compile(
    # By how they begin: of one word, or with dashes in them. A capital or a digit tells
    # them from names.
    r"(?<![\w-])(?:"
    r"(?:csk-|gh[a-z]_|gsk_|hf_|pplx-|r8_|xai-)(?=[a-z]{0,40}[A-Z0-9])[A-Za-z0-9]{16,}"
    r"|(?:[prs]k[-_]|AIza|github_pat_|nvapi-|ya29\.)(?=[a-z_-]{0,40}[A-Z0-9])[\w-]{16,}"
    r"|A(?:KI|SI)A[A-Z2-7]{16}\b"
    r"|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"  # A JSON Web Token.
    r")"
    # By where they are: the login of a URL, a value of its query, a header.
    r"|(?<=://)[^\s/@:\"']*:[^\s/@\"']+(?=@)"
    r"|(?P<before>[?&](?i:[\w-]*(?:key|token|secret|password|signature|sig))="
    # Basic is a word, too: behind it is a text in base64, and not "JavaScript".
    r"|\b(?i:basic\s+(?=[a-z0-9+/]{12,}={0,2}(?![\w.-]))|bearer\s+)"
    r"(?=[^\s&\"'<>][a-z._~+/-]{0,40}[A-Z0-9]))[^\s&\"'<>]{8,}"
    # A header that cannot be sent, whose `repr` need not have the key as it is.
    r"|(?P<quote>['\"])(?<=eader value .|ader value b.|ader value: .).*(?P=quote)"
)


def mask_with(hide: Callable[[str], str], error: BaseException) -> None:
    """Let `hide` rewrite all texts that a traceback of `error` may print."""
    pending, seen = [error], set()
    while pending:
        step = pending.pop()
        if id(step) in seen:
            continue
        seen.add(id(step))
        args = tuple(rewrite(hide, _json.cut(arg)) for arg in step.args)
        if args != step.args:
            step.args = args
        attributes = getattr(step, "__dict__", {})
        for name, value in list(attributes.items()):
            if isinstance(value, str | dict | list):
                attributes[name] = rewrite(hide, _json.cut(value))
        # httpcore's have h11's exception as their argument, and print it.
        group = step.exceptions if isinstance(step, BaseExceptionGroup) else ()
        linked = (step.__cause__, step.__context__, *step.args, *group)
        pending += [one for one in linked if isinstance(one, BaseException)]


def rewrite(hide: Callable[[str], str], value: Any) -> Any:
    """`value`, a text or JSON, with its texts as `hide` makes them."""
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, Mapping):
        return {rewrite(hide, k): rewrite(hide, item) for k, item in value.items()}
    if isinstance(value, list):
        return [rewrite(hide, item) for item in value]
    return value


def redact_text(secrets: Iterable[str], text: str) -> str:
    """`text` with stars instead of `secrets`."""
    for secret in secrets:
        text = text.replace(secret, MASK)
        if _CUT in text:
            # An excerpt may have ended in the middle of it.
            for length in range(len(secret) - 1, SHORTEST_SECRET - 1, -1):
                text = text.replace(f"{secret[:length]}{_CUT}", f"{MASK}{_CUT}")
    return text


def hide_keys(text: str) -> str:
    """`text` with stars instead of what looks like a key of any provider."""
    return _KEY.sub(rf"\g<before>{MASK}", text)


def has_key(text: str) -> bool:
    """Whether something in `text` looks like a key of any provider."""
    return _KEY.search(text) is not None


def shown(value: Any) -> str:
    """A refused value in a message; only its type if it may be, or hold, a secret."""
    is_short = isinstance(value, str) and len(value) < SHORTEST_SECRET
    if is_short or isinstance(value, int | float | None):
        return repr(value)
    return f"of type {type(value).__name__}"


def name_value(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """Check a field that takes no secret, for `field_validator(..., mode="wrap")`.

    The error names the value, which pydantic does not in classes whose other fields
    may hold keys.
    """
    try:
        return check(value)
    except ValidationError as error:
        if not isinstance(value, int | float | str):
            raise
        said = error.errors(include_url=False)[0]["msg"]
    raise _refusal(said, value)


def refuse_bool(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """As `name_value`, for numbers: neither True nor False is one."""
    if isinstance(value, bool):
        raise _refusal(_NO_NUMBER, value)
    return name_value(value, check)


def check_number(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    """As `refuse_bool`, for fields that never took texts: "1" is not a number."""
    if isinstance(value, str):
        raise _refusal(_NO_NUMBER, value)
    return refuse_bool(value, check)


def _refusal(said: str, value: Any) -> ValueError:
    """Names the value; of a text that may be a key by mistake, its beginning."""
    is_text = isinstance(value, str) and len(value) >= SHORTEST_SECRET
    if is_text and not (len(value) <= _LONGEST_WORD and value.isidentifier()):
        return ValueError(f"{said}, not {value[: SHORTEST_SECRET - 1]!r}{_CUT}")
    return ValueError(f"{said}, not {value!r}")


def nearest(name: object, known: Iterable[str]) -> str:
    """The end of a message about a name that is not known: which one may be meant."""
    names = sorted(known)
    near = difflib.get_close_matches(str(name), names, 1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are {', '.join(names)}" if len(names) <= _MOST_NAMES else ""


def refuse_unknown(
    cls: type[BaseModel], given: Iterable[str], advice: Mapping[str, str]
) -> None:
    """Refuse the names of arguments that a class does not take.

    Values are not shown, since they may be keys. `advice` says of some names what to
    do instead.

    Raises:
        ValueError: One is not known.
    """
    fields = cls.model_fields
    known = {*fields, *(field.alias for field in fields.values() if field.alias)}
    for name in given:
        if name in advice:
            msg = f"{cls.__name__} takes no {name}: {advice[name]}"
            raise ValueError(msg)
        if name not in known:
            msg = f"{cls.__name__} takes no {name!r}{nearest(name, known)}"
            raise ValueError(msg)
