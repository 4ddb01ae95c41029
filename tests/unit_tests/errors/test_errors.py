"""Errors: their classes, what they say of arguments, and the keys they do not show."""

import copy
import functools
import inspect
import math
import pickle
import re
import time
import traceback
from collections.abc import Callable
from typing import Any, Final

import gpt_router.exceptions as gateway_sdk
import openai
import pytest
from langchain_core import exceptions as langchain
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from pydantic import SecretStr, ValidationError

from langchain_retryrouter import (
    AzureOpenAI,
    CircuitBreaker,
    EmbeddingsRoute,
    EmbeddingsRouter,
    GPTRouter,
    GPTRouterEmbeddings,
    GPTRouterModel,
    OpenAI,
    OpenAIChat,
    RateLimit,
    RetryBudget,
    RetryPolicy,
    RetryRouter,
    RetryRouterError,
    Route,
    SpendLimit,
    errors,
)
from langchain_retryrouter._gptrouter.protocol import GPT_ROUTER_ERRORS
from langchain_retryrouter._openai.errors import OPENAI_ERRORS
from langchain_retryrouter._providers.errors import hide_secrets
from langchain_retryrouter.errors import BASE_ERRORS, ErrorFamily
from langchain_retryrouter.failures import Failure, FailureKind, is_retryable
from langchain_retryrouter.testing import (
    ErrorEvent,
    ErrorInOk,
    FaultyGateway,
    Status,
)
from tests.support.models import chat_openai
from tests.unit_tests.conftest import Twin

K = FailureKind
NO = "the provider said no"
PLAIN_KEY = "sk-very-secret"
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

    headers = {"authorization": f"Bearer {PLAIN_KEY}"}  # noqa: RUF012 - as good as frozen

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
    error = errors.ServerError(f"no, {PLAIN_KEY}", body={"echo": [PLAIN_KEY]})
    error.add_note(f"asked with {PLAIN_KEY}")
    held = HeldError(f"Illegal header value b'{PLAIN_KEY}\\n'")
    error.__cause__ = Exception(held)
    error.__cause__.__context__ = ExceptionGroup("two", [ValueError(PLAIN_KEY), held])
    hide_secrets(error, [PLAIN_KEY])
    printed = "".join(traceback.format_exception(error))
    assert printed.count("***") >= 4
    assert PLAIN_KEY not in f"{printed} {error.body} {error.message}"


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


KEY: Final = "sk-proj-4kOq7ZVwVtq2"
URL: Final = f"https://user:{KEY}@host"
MODEL: Final = FakeListChatModel(responses=["Hello."])
EMBEDDINGS: Final = DeterministicFakeEmbedding(size=3)
GATEWAY: Final[dict[str, Any]] = {
    "models_priority_list": [GPTRouterModel(name="gpt-4o", provider_name="openai")],
    "gpt_router_api_key": KEY,
}
PRICED: Final = Route(model=MODEL, input_price=1, output_price=1)


class Careless(FakeListChatModel):
    """A model of somebody else that shows its key."""

    api_key: str = KEY


CARELESS: Final = Careless(responses=["Hello."])
AZURE: Final = {"api_key": KEY, "azure_endpoint": "https://a", "api_version": "1"}
CLASSES: Final[dict[Any, dict[str, Any]]] = {
    RetryRouter: {"routes": [CARELESS]},
    Route: {"model": CARELESS},
    EmbeddingsRouter: {"routes": [EMBEDDINGS]},
    EmbeddingsRoute: {"model": EMBEDDINGS},
    GPTRouter: GATEWAY,
    GPTRouterEmbeddings: GATEWAY,
    OpenAI: {"api_key": KEY},
    OpenAIChat: {"api_key": KEY},
    AzureOpenAI: AZURE,
}
SECRET_NAMES: Final = (
    *("api_key", "api_keys", "openai_api_key", "gpt_router_api_key", "apikey"),
    *("token", "password", "base_url", "store", "proxy", "openai_proxy", "foo"),
    *("default_headers", "cache", "metadata", "rate_limit", "rate_limiter", "budget"),
    *("breaker", "spend_limit", "clock", "tags", "retry_policy", "breaker_settings"),
    *("gpt_router_api_base", "client", "timeout"),
)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
@pytest.mark.filterwarnings("ignore:.* is not default parameter:UserWarning")
def test_no_refused_argument_shows_a_key(cls: Any) -> None:
    """A key or a URL at the wrong place is in no message, and neither are others."""
    messages = []
    for name in SECRET_NAMES:
        values = ([KEY], {"key": KEY}, URL) if name == "timeout" else ([KEY], KEY, URL)
        for value in values:
            if name == "store" and value == KEY:
                continue
            try:
                cls(**{**CLASSES[cls], name: value})
            except (ImportError, TypeError, ValueError) as error:
                messages.append((name, str(error)))
    assert len(messages) > len(SECRET_NAMES)
    assert not [name for name, message in messages if KEY in message]
    own_names = {"base_url", "token"}
    assert not [m for name, m in messages if name not in m and name not in own_names]


# Types are not checked: they are mistaken.
new_router: Any = RetryRouter
new_embeddings: Any = EmbeddingsRouter
NO_DATA: Final = {"key": KEY, "other": object()}
MISTAKES: Final[dict[str, Any]] = {
    "no list": lambda: new_router(routes=CARELESS),
    "a dict of models": lambda: new_router(routes={"first": CARELESS}),
    "a dict for a route": lambda: new_router(
        routes=[{"model": "openai:m", "api_key": KEY}]
    ),
    "a chain": lambda: new_router(routes=[CARELESS | (lambda answer: answer)]),
    "a number beside it": lambda: new_router(routes=[CARELESS], max_cost=-1),
    "bound": lambda: Route(model=MODEL.bind(api_key=KEY), weight=-1),  # type: ignore[arg-type]
    "key twice": lambda: Route.pool(MODEL, api_keys=[KEY, KEY]),
    "pool": lambda: Route.pool("openai:m", api_keys=[KEY], bogus=1),
    "embeddings: no list": lambda: new_embeddings(routes=CARELESS),
    "embeddings: a chat model": lambda: new_embeddings(routes=[CARELESS]),
    **{
        address: functools.partial(GPTRouter, **GATEWAY, gpt_router_api_base=address)
        for address in (URL + ":port", f"http://user:{KEY}/{KEY}@host", KEY)
    },
    "config": lambda: RetryRouter.from_config({"routes": [], "api_key": KEY}),
    "no data": lambda: new_router(routes=[CARELESS], metadata=NO_DATA).to_config(),
    "config with a store": lambda: RetryRouter.from_config(
        {"routes": ["openai:m"], "store": URL}
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_no_mistaken_form_shows_a_key(mistake: str) -> None:
    """A list that was forgotten, or a dict instead of a Route, shows no model's key."""
    with pytest.raises((TypeError, ValueError)) as refused:
        MISTAKES[mistake]()
    lines = traceback.format_exception(refused.value)
    assert KEY not in "".join(line for line in lines if "test_errors" not in line)


def test_a_key_for_a_router_goes_to_a_model() -> None:
    """The message says where the key belongs."""
    with pytest.raises(ValidationError, match="api_key: give it to the model of a"):
        RetryRouter(routes=[MODEL], api_key=KEY)
    with pytest.raises(ValidationError, match=r"api_keys: give Route.pool\(model, "):
        RetryRouter(routes=[MODEL], api_keys=[KEY])


@pytest.mark.parametrize(
    "cls", [RetryRouter, EmbeddingsRouter, GPTRouter, GPTRouterEmbeddings, OpenAI]
)
@pytest.mark.parametrize("name", ["max_retries", "deadline", "jitter", "patience"])
def test_a_policy_in_a_dict_is_checked_like_a_policy(cls: Any, name: str) -> None:
    """Pydantic would make 1 of True, and a number of a text."""
    value = "yes" if name == "jitter" else True
    with pytest.raises(ValidationError, match=name):
        cls(**CLASSES[cls], retry_policy={name: value})
    made = cls(**CLASSES[cls], retry_policy={"deadline": 3, "attempt_timeout": 2})
    assert made.retry_policy == RetryPolicy(deadline=3, attempt_timeout=2)


# --- numbers ---

SHARED: Final[dict[Any, dict[str, Any]]] = {
    RetryPolicy: {},
    RetryBudget: {},
    CircuitBreaker: {},
    RateLimit: {"requests_per_minute": 5},
    SpendLimit: {"amount": 1},
}
NO_NUMBERS: Final = (
    *("name", "store", "clock", "on_retry", "on_failover", "on_state_change"),
    *("jitter", "strict", "adaptive"),
)
FIELDS: Final = [
    (Route, {"model": MODEL}, "tier weight input_price output_price"),
    (RetryRouter, {"routes": [PRICED]}, "max_cost max_price hedge_after seed"),
    (
        EmbeddingsRouter,
        {"routes": [EMBEDDINGS]},
        "dimensions max_batch_size max_batch_tokens max_concurrency",
    ),
]
OWN: Final = [
    *(
        (cls, given, name)
        for cls, given in SHARED.items()
        for name in inspect.signature(cls).parameters
        if name not in NO_NUMBERS
    ),
    *((cls, given, name) for cls, given, names in FIELDS for name in names.split()),
]
SAMPLING: Final = ("temperature", "top_p", "frequency_penalty", "max_tokens", "n")
OTHERS: Final = [
    *((GPTRouter, GATEWAY, name) for name in (*SAMPLING, "gateway_timeout")),
    *((GPTRouter, GATEWAY, name) for name in ("gateway_max_retries", "max_retries")),
    *((GPTRouter, GATEWAY, name) for name in ("timeout", "request_timeout")),
    *((GPTRouterEmbeddings, GATEWAY, n) for n in ("chunk_size", "max_concurrency")),
    *((OpenAI, {"api_key": KEY}, n) for n in (*SAMPLING, "logprobs", "best_of")),
    *((OpenAIChat, {"api_key": KEY}, n) for n in (*SAMPLING, "batch_size", "seed")),
]


@pytest.mark.parametrize(("cls", "given", "name"), OTHERS)
@pytest.mark.parametrize("value", [True, False, math.nan])
def test_no_bool_is_a_number(
    cls: Any, given: dict[str, Any], name: str, value: Any
) -> None:
    """True is 1 for Python and for pydantic, and never what a number should be."""
    with pytest.raises(ValueError, match=f"(?s){name}.*"):
        cls(**{**given, name: value})


@pytest.mark.parametrize(("cls", "given", "name"), OWN)
@pytest.mark.parametrize("value", [True, "5", -1, math.nan])
def test_a_number_of_a_wrong_kind_is_named(
    cls: Any, given: dict[str, Any], name: str, value: Any
) -> None:
    """A text, and a number below the range, are refused with the value."""
    if name == "seed" and value == -1:
        return
    with pytest.raises(ValueError, match=f"(?s){name}.*not {value!r}"):
        cls(**{**given, name: value})


@pytest.mark.parametrize("count", [True, "5", -1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["input_tokens", "output_tokens"])
def test_explain_takes_numbers_only(name: str, count: Any) -> None:
    """The counts of a worst case are numbers, or there is an error with the value."""
    router = RetryRouter(routes=[PRICED])
    counts = {"input_tokens": 5, "output_tokens": 5, name: count}
    with pytest.raises(ValueError, match=f"{name} must be a number.*not {count!r}"):
        router.explain(**counts)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("strategy", "prioritized", "'priority', .* not 'prioritized'"),
        ("affinity", "conversations", "'conversation', not 'conversations'"),
        ("stream_recovery", "bufferr", "not 'bufferr'"),
        ("hedge_after", "soon", "valid number, not 'soon'"),
        ("hedge_after", KEY, f"valid number, not '{KEY[:7]}'…"),
        ("max_cost", -1, "greater than 0, not -1"),
    ],
)
def test_what_takes_no_secret_is_named_with_its_value(
    name: str, value: Any, said: str
) -> None:
    """The message has the value, or its beginning if it may be a key by mistake."""
    with pytest.raises(ValueError, match=rf"{name}\n.*{said}"):
        RetryRouter(**{"routes": [CARELESS], name: value})


SECRET: Final = "abcdefghijklmnopqrstuvwxyz0123456789"
TOKEN: Final = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"
# What stands before a key, the key, and what stands behind it.
KEYS: Final[dict[str, tuple[str, str, str]]] = {
    **{
        begin: ("", begin + SECRET, "")
        for begin in (
            *("sk-", "sk-proj-", "sk-ant-api03-", "sk-or-v1-", "pk-lf-", "rk_live_"),
            *("AIza", "csk-", "github_pat_", "ghp_", "gsk_", "hf_", "nvapi-"),
            *("pplx-", "r8_", "xai-", "ya29."),
        )
    },
    "of capitals": ("", f"sk-{'A' * 24}", ""),
    "of Amazon": ("", "AKIAIOSFODNN7EXAMPLE", ""),
    "of Amazon, for a while": ("", "ASIAIOSFODNN7EXAMPLE", ""),
    "a web token": ("", TOKEN, ""),
    "a login": ("https://", "user:hunter2secret", "@host/path"),
    "a password": ("redis://", ":hunter2secret", "@host/0"),
    "a signature": ("https://h/x?a=1&sig=", "AbCdEfGh%3D", "&b=2"),
    **{
        name: (f"https://h/x?{name}=", "hunter2secret", "")
        for name in ("key", "api_key", "api-key", "token", "access_token", "Signature")
    },
    "a bearer": ("Bearer ", "Xk3Xk3Xk3Xk3", ""),
    "a basic login": ("authorization: Basic ", "dXNlcjpodW50ZXIyc2VjcmV0", ""),
}
NAMES: Final = [
    *("gpt-4o-mini-2024-07-18", "xai-grok-4-1-fast-reasoning-0709"),
    *("hf_meta-llama-3.1-8B-Instruct", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
    *("my-gpt-4o-deployment-in-eastus-2", "task-2024-of-a-long-name-1"),
    *("chatcmpl-9abcDEF0123456789abcdefGHIJK", "req_011CSHoEeqs5C35K2UUqR7Fy"),
    *("resp_67ccd2bed1ec8190b14f964abc054267", "msg_01XFDUDYJgAACzvnptvVoYEL"),
    *("123e4567-e89b-12d3-a456-426614174000", "d41d8cd98f00b204e9800998ecf8427e"),
    *("Basic JavaScript and PostgreSQL", "basic Python3.11-compatible code"),
    *("Basic authentication is off", "Bearer Token", "a Bearer authentication header"),
    *("https://host:443/v1/x?api-version=2024-10-21", "at http://a:80 by b@c.de"),
]


def router(gateway: FaultyGateway) -> RetryRouter:
    return RetryRouter(routes=[chat_openai(gateway)])


@pytest.mark.parametrize("row", KEYS)
def test_a_key_is_known_by_its_form(
    twin: Twin, gateway: FaultyGateway, row: str
) -> None:
    """A key of anybody that a provider quotes is not in the error or its traceback."""
    before, key, behind = KEYS[row]
    gateway.always(Status(401, message=f"not {before}{key}{behind} here"))
    with pytest.raises(RetryRouterError) as caught:
        twin.invoke(router(gateway), "hi")
    error = caught.value
    shown = (
        f"{error.body} {error.attempt_log} {''.join(traceback.format_exception(error))}"
    )
    assert f"not {before}***{behind} here" in str(error)
    assert key not in shown


@pytest.mark.parametrize("row", KEYS)
def test_a_gateway_s_error_shows_no_key_of_its_providers(
    twin: Twin, gateway: FaultyGateway, row: str
) -> None:
    """A gateway quotes its providers, who quote its key: no error shows that."""
    before, key, behind = KEYS[row]
    said = f"not {before}{key}{behind} here"
    llm = GPTRouter(
        models_priority_list=[
            GPTRouterModel(name="gpt-4", provider_name="chat_openai")
        ],
        gpt_router_api_base=gateway.url,
        gpt_router_api_key=SecretStr("the-gateway-s-own-key"),
        max_retries=0,
    )
    for ask, step in (
        (twin.invoke, Status(401, message=said)),
        (twin.invoke, ErrorInOk(said)),
        (twin.stream, ErrorEvent(said, status=401)),
    ):
        gateway.always(step)
        with pytest.raises(RetryRouterError) as caught:
            ask(llm, "hi")
        error = caught.value
        text = f"{error.body} {''.join(traceback.format_exception(error))}"
        assert f"not {before}***{behind} here" in str(error)
        assert key not in text


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_not_taken_for_a_key(gateway: FaultyGateway, name: str) -> None:
    """Names of models and deployments, ids, hashes and sentences stay as they are."""
    gateway.always(Status(401, message=f"not {name} here"))
    with pytest.raises(RetryRouterError, match="401") as caught:
        router(gateway).invoke("hi")
    assert f"not {name} here" in str(caught.value)


@pytest.mark.parametrize("row", KEYS)
def test_a_config_takes_no_key_of_any_form(row: str) -> None:
    """What is hidden in an error is refused in a config, under whatever name it is."""
    before, key, behind = KEYS[row]
    table = {"model": "openai:gpt-4o", "options": {"x": f"{before}{key}{behind}"}}
    with pytest.raises(ValueError, match=r"options\.x: a config must not") as refused:
        RetryRouter.from_config({"routes": [table]})
    assert key not in str(refused.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_config_takes_names(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No name is refused as if it were a key."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")
    table = {"model": "openai:gpt-4o", "options": {"x": name}}
    assert RetryRouter.from_config({"routes": [table]}).routes[0].options["x"] == name


@pytest.mark.parametrize(
    "piece", ["sk-", "eyJ-", "eyJaaaaaaaaa.", "://:", "?key", "bearer ", "?-", "://a:b"]
)
def test_a_long_text_is_read_in_a_moment(gateway: FaultyGateway, piece: str) -> None:
    """No text of a provider is read again and again for what might be a key."""
    gateway.always(Status(401, message=piece * (10_000 // len(piece))))
    began = time.perf_counter()
    with pytest.raises(RetryRouterError):
        router(gateway).invoke("hi")
    assert time.perf_counter() - began < 5
