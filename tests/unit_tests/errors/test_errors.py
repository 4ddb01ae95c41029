"""The tree of errors: what each class is to LangChain, the SDKs, and pickle."""

import copy
import pickle
import re
import traceback
from collections.abc import Callable
from typing import Any

import gpt_router.exceptions as gateway_sdk
import openai
import pytest
from langchain_core import exceptions as langchain

from langchain_retryrouter import errors
from langchain_retryrouter._gptrouter.protocol import GPT_ROUTER_ERRORS
from langchain_retryrouter._openai.errors import OPENAI_ERRORS
from langchain_retryrouter._providers.errors import hide_secrets
from langchain_retryrouter.errors import BASE_ERRORS, ErrorFamily, RetryRouterError
from langchain_retryrouter.failures import Failure, FailureKind, is_retryable

K = FailureKind
NO = "the provider said no"
KEY = "sk-very-secret"
FAMILIES = {
    "base": BASE_ERRORS,
    "gpt_router": GPT_ROUTER_ERRORS,
    "openai": OPENAI_ERRORS,
}
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)

# By kind: LangChain's Model…Error, the gateway's GPTRouter…Error ("-": none), openai's.
PARENTS = {
    K.RATE_LIMIT: "RateLimit TooManyRequests RateLimit",
    K.QUOTA: "RateLimit TooManyRequests RateLimit",
    K.UNAVAILABLE: "API NotAvailable InternalServer",
    K.SERVER_ERROR: "API InternalServer InternalServer",
    K.CONFLICT: "API - Conflict",
    K.TIMEOUT: "Timeout ApiTimeout APITimeout",
    K.CONNECTION: "Connection - APIConnection",
    K.INTERRUPTED: "Connection Streaming APIConnection",
    K.MALFORMED: "API InternalServer APIResponseValidation",
    K.INVALID_REQUEST: "InvalidRequest BadRequest BadRequest",
    K.AUTHENTICATION: "Authentication Unauthorized Authentication",
    K.PERMISSION: "PermissionDenied Forbidden PermissionDenied",
    K.NOT_FOUND: "NotFound - NotFound",
    K.CONTEXT_OVERFLOW: "InvalidRequest BadRequest BadRequest",
    K.CONTENT_FILTER: "InvalidRequest BadRequest BadRequest",
    K.CIRCUIT_OPEN: "API NotAvailable APIConnection",
}


@pytest.mark.parametrize("kind", PARENTS)
def test_old_except_clauses_work(kind: FailureKind) -> None:
    """An error is caught as LangChain's class and as the SDK's, with the same text."""
    parent, gateways, openais = PARENTS[kind].split()
    ours = getattr(langchain, f"Model{parent}Error")
    sdks = (
        [] if gateways == "-" else [getattr(gateway_sdk, f"GPTRouter{gateways}Error")]
    )
    caught_as = {
        BASE_ERRORS[kind]: [ours],
        GPT_ROUTER_ERRORS[kind]: [ours, *sdks],
        OPENAI_ERRORS[kind]: [ours, getattr(openai, f"{openais}Error")],
    }
    if kind is K.CONTEXT_OVERFLOW:
        caught_as[BASE_ERRORS[kind]].append(langchain.ContextOverflowError)
    if kind is K.CONTENT_FILTER and hasattr(langchain, "ModelRefusalError"):
        caught_as[BASE_ERRORS[kind]].append(langchain.ModelRefusalError)
    for cls, classes in caught_as.items():
        assert issubclass(cls, BASE_ERRORS[kind])
        assert cls.kind is kind
        for wanted in classes:
            with pytest.raises(wanted, match=rf"^{NO}$") as caught:
                raise cls(NO)
            assert repr(caught.value) == f"{cls.__name__}('{NO}')"


@families
def test_is_retryable_agrees_with_the_retry_engine(family: ErrorFamily) -> None:
    """LangChain's middleware and ours think alike about what is worth repeating."""
    for kind, cls in family.items():
        assert cls(NO).is_retryable is is_retryable(kind)
        facts: dict[str, Any] = {
            "status_code": 599,
            "retry_after": 3.0,
            "should_retry": False,
            "may_have_run": False,
        }
        assert cls(NO, **facts).failure == Failure(kind=kind, **facts)


# --- should_retry -------------------------------------------------------------------


def given_up() -> errors.RetryRouterError:
    error = errors.ServerError("after 3 attempts")
    error.is_retryable = False
    return error


@pytest.mark.parametrize(
    ("error", "may_pass"),
    [
        (errors.RateLimitError("slow down"), True),
        (errors.RateLimitError("slow down", should_retry=False), False),
        (errors.QuotaExceededError("no money"), False),
        (given_up(), False),
        (langchain.ModelTimeoutError("LangChain's"), True),
        (langchain.ModelAuthenticationError("LangChain's"), False),
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (ValueError("a bug"), False),
        (KeyboardInterrupt(), False),
    ],
    ids=repr,
)
def test_should_retry(error: BaseException, *, may_pass: bool) -> None:
    """Transient errors may pass; final ones, and those we gave up on, do not."""
    assert errors.should_retry(error) is may_pass


# --- Copies -------------------------------------------------------------------------


class HTTPObject:
    """What an SDK keeps in an error: it cannot be pickled, and it has the key."""

    headers = {"authorization": f"Bearer {KEY}"}  # noqa: RUF012 - as good as frozen

    def __reduce__(self) -> tuple[Any, ...]:
        """Refuse, as objects with sockets do."""
        msg = "cannot pickle a socket"
        raise TypeError(msg)


def through_pickle(error: Exception) -> Any:
    """The error as another process sees it."""
    return pickle.loads(pickle.dumps(error))


@pytest.mark.parametrize("copied", [through_pickle, copy.copy, copy.deepcopy])
@families
def test_a_copy_has_every_fact_and_no_key(
    family: ErrorFamily, copied: Callable[[Exception], Any]
) -> None:
    """Class, message, facts and notes survive pickle and copy; HTTP objects do not."""
    classes: list[type[RetryRouterError]] = [RetryRouterError, *family.values()]
    for cls in classes:
        error: Any = cls(
            "slow down",
            status_code=429,
            retry_after=1.5,
            should_retry=True,
            request_id="req_123",
            code="rate_limit_exceeded",
            body={"error": {"message": "slow down"}},
            may_have_run=False,
        )
        error.route, error.attempts, error.delivered = "gpt-4", 3, "Hel\u2028lo"
        error.is_retryable = False
        error.add_note("gave up after 3 attempts")
        expected = dict(vars(error))
        if family is OPENAI_ERRORS and cls is not RetryRouterError:
            error.request = error.response = HTTPObject()
            error.param = "messages"
            expected["param"] = "messages"
        other = copied(error)
        assert type(other) is cls
        assert str(other) == "slow down"
        assert vars(other) == expected
        assert getattr(other, "response", None) is None


# --- Secrets ------------------------------------------------------------------------


class HeldError(Exception):
    """As h11's: httpcore has it as its argument, and prints it."""


def test_no_traceback_shows_a_key() -> None:
    """A key is taken out of every text that a traceback of the error prints."""
    error = errors.ServerError(f"no, {KEY}", body={"echo": [KEY]})
    error.add_note(f"asked with {KEY}")
    held = HeldError(f"Illegal header value b'{KEY}\\n'")
    error.__cause__ = Exception(held)
    error.__cause__.__context__ = ExceptionGroup("two", [ValueError(KEY), held])
    hide_secrets(error, [KEY])
    printed = "".join(traceback.format_exception(error))
    assert printed.count("***") >= 4
    assert KEY not in f"{printed} {error.body} {error.message}"


def test_a_short_key_is_not_hidden() -> None:
    """The "EMPTY" of local servers is not a secret, and may be a word of the text."""
    error = errors.ServerError("EMPTY answer")
    hide_secrets(error, ["EMPTY"])
    assert str(error) == "EMPTY answer"


# --- The classes --------------------------------------------------------------------


LINE = re.compile(
    r"^    (?P<branch>[ │├└─]*)(?P<name>[A-Z]\w+)(?P<note>.*)$", re.MULTILINE
)


def test_the_drawing_in_the_docstring_is_true() -> None:
    """The tree in the docstring shows each class, its parents, and what is repeated."""
    path: list[str] = []
    shown: list[str] = []
    for match in LINE.finditer(errors.__doc__ or ""):
        depth, name = len(match["branch"]) // 4, match["name"]
        path[depth:] = [name]
        shown.append(name)
        if depth == 0:
            continue
        cls, parent = getattr(errors, name), path[depth - 1]
        assert cls.__bases__[0].__name__ == parent
        if name not in {"RetryRouterError", "UnsupportedOptionError"}:
            drawn = re.findall(
                r"\b(?:Model|Context|OutputP)\w+(?:Error|Exception)\b", match["note"]
            )
            if not hasattr(langchain, "ModelRefusalError"):  # Before 1.7.5.
                drawn = ["ModelError" if "Refusal" in one else one for one in drawn]
            assert drawn == [base.__name__ for base in cls.__bases__[1:]]
            assert match["note"].lstrip().startswith("*") is cls.is_retryable
    exported = [name for name in errors.__all__ if name != "should_retry"]
    assert sorted(shown) == sorted(["ModelError", "ValueError", *exported])
