"""The tree of errors: what each means to LangChain, and whether it is drawn rightly."""

from __future__ import annotations

import contextlib
import re
from typing import NamedTuple

import pytest
from langchain_core import exceptions as langchain

from langchain_retryrouter import errors
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.failures import Failure, FailureKind, is_retryable

from .families import ALL_CLASSES, BASE_CLASSES, FAMILIES

NO = "the provider said no"

LANGCHAIN_PARENTS = {
    errors.RetryRouterError: langchain.ModelError,
    errors.AuthenticationError: langchain.ModelAuthenticationError,
    errors.PermissionDeniedError: langchain.ModelPermissionDeniedError,
    errors.NotFoundError: langchain.ModelNotFoundError,
    errors.InvalidRequestError: langchain.ModelInvalidRequestError,
    errors.ContextLengthError: langchain.ContextOverflowError,
    errors.ContentFilterError: langchain.ModelInvalidRequestError,
    errors.RateLimitError: langchain.ModelRateLimitError,
    errors.QuotaExceededError: langchain.ModelRateLimitError,
    errors.ServerError: langchain.ModelAPIError,
    errors.UnavailableError: langchain.ModelAPIError,
    errors.ConflictError: langchain.ModelAPIError,
    errors.MalformedResponseError: langchain.ModelAPIError,
    errors.CircuitOpenError: langchain.ModelAPIError,
    errors.APITimeoutError: langchain.ModelTimeoutError,
    errors.APIConnectionError: langchain.ModelConnectionError,
    errors.StreamInterruptedError: langchain.ModelConnectionError,
}


def test_the_table_is_whole() -> None:
    """A class that is added must say what it means to LangChain."""
    assert set(LANGCHAIN_PARENTS) == {RetryRouterError, *BASE_CLASSES}


@pytest.mark.parametrize(("cls", "parent"), LANGCHAIN_PARENTS.items())
def test_langchains_except_clauses_work(
    cls: type[RetryRouterError], parent: type[Exception]
) -> None:
    """Code that catches LangChain's classes catches ours, whatever the provider."""
    with pytest.raises(parent):
        raise cls(NO)
    assert issubclass(cls, langchain.ModelError)


# --- repeating ----------------------------------------------------------------------


@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_the_class_agrees_with_the_core(cls: type[RetryRouterError]) -> None:
    """LangChain's middleware and our core think alike about what is worth repeating."""
    assert cls.is_retryable is is_retryable(cls.kind)
    assert cls("no").is_retryable is is_retryable(cls.kind)


@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_what_no_retry_mends_is_a_runtime_error(cls: type[RetryRouterError]) -> None:
    """LangGraph asks by `isinstance`; to `type` and `except` the error stays itself."""
    error = cls(NO)
    assert isinstance(error, RuntimeError) is not cls.is_retryable
    error.is_retryable = False
    assert isinstance(error, RuntimeError)
    assert isinstance(error, cls)
    assert type(error) is cls
    assert error.__class__.__name__ == cls.__name__
    assert not isinstance(error, ValueError | ConnectionError)
    with pytest.raises(cls), contextlib.suppress(RuntimeError):
        raise error


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("kind", FailureKind)
def test_every_family_has_every_kind(name: str, kind: FailureKind) -> None:
    """Whatever goes wrong has a class in each family, found under its own kind."""
    if kind is FailureKind.CIRCUIT_OPEN and name == "gpt_router, in a stream":
        # No stream reports it: the breaker refuses before there is one.
        assert kind not in FAMILIES[name]
        return
    cls = FAMILIES[name][kind]
    assert cls.kind is kind
    assert issubclass(cls, errors.BASE_ERRORS[kind])


# --- facts --------------------------------------------------------------------------


def test_facts_that_nobody_told_are_absent() -> None:
    """An error of which only the message is known claims nothing else."""
    error = errors.ServerError("no")
    assert str(error) == error.message == "no"
    assert vars(error) == {
        "message": "no",
        "status_code": None,
        "retry_after": None,
        "should_retry": None,
        "request_id": None,
        "code": None,
        "body": None,
        "may_have_run": True,
        "route": None,
        "attempts": 1,
        "delivered": "",
        "others": (),
    }


@pytest.mark.parametrize("cls", ALL_CLASSES)
def test_the_failure_is_the_error_as_data(cls: type[RetryRouterError]) -> None:
    """What the core decides by is what the error says."""
    error = cls(
        "no", status_code=599, retry_after=3.0, should_retry=False, may_have_run=False
    )
    assert error.failure == Failure(
        kind=cls.kind,
        status_code=599,
        retry_after=3.0,
        should_retry=False,
        may_have_run=False,
    )


def test_an_unsupported_option_is_a_value_error() -> None:
    """An option that cannot be sent is the caller's mistake, and no failed call."""
    assert issubclass(errors.UnsupportedOptionError, ValueError)
    assert not issubclass(errors.UnsupportedOptionError, RetryRouterError)


# --- the drawing --------------------------------------------------------------------


class Drawn(NamedTuple):
    """One line of the tree in the docstring."""

    name: str
    parent: str | None
    is_starred: bool
    note: str


LINE = re.compile(r"^    (?P<branch>[ │├└─]*)(?P<name>[A-Z]\w+)(?P<note>.*)$")


def drawing() -> list[Drawn]:
    """The tree as the docstring draws it."""
    drawn: list[Drawn] = []
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = LINE.match(line)
        if match is None:
            continue
        depth = len(match["branch"]) // 4
        name, note = match["name"], match["note"].strip()
        parent = path[depth - 1] if depth else None
        drawn.append(Drawn(name, parent, note.startswith("*"), note.lstrip("* ")))
        path[depth:] = [name]
    return drawn


TREE = {line.name: line for line in drawing()}
OURS = [name for name, line in TREE.items() if line.parent is not None]


def test_the_drawing_shows_every_class_once() -> None:
    """The tree in the docstring has all public errors, and no others."""
    assert sorted(line.name for line in drawing()) == sorted(
        ["ModelError", "ValueError", *errors.__all__]
    )


@pytest.mark.parametrize("name", OURS)
def test_the_drawing_shows_the_real_parents(name: str) -> None:
    """A class hangs under its first base, and LangChain's is written beside it."""
    cls, line = getattr(errors, name), TREE[name]
    assert cls.__bases__[0].__name__ == line.parent
    others = [base.__name__ for base in cls.__bases__[1:]]
    named = re.findall(r"\b(?:Model|ContextOverflow)\w*Error\b", line.note)
    assert named == others


@pytest.mark.parametrize("name", [n for n in OURS if n != "UnsupportedOptionError"])
def test_the_drawing_stars_what_is_repeated(name: str) -> None:
    """A `*` stands exactly where the class says that a repetition may help."""
    assert TREE[name].is_starred is getattr(errors, name).is_retryable
