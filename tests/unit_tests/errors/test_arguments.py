"""What the public classes say of arguments that they refuse."""

import functools
import inspect
import math
import traceback
from typing import Any, Final

import pytest
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from pydantic import ValidationError

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
    Route,
    SpendLimit,
)

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
    assert KEY not in "".join(line for line in lines if "test_arguments" not in line)


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
