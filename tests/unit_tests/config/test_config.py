"""Routers from strings and files, what is wrong with a file, and routers as data."""

import json
import sys
import tomllib
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import yaml
from langchain_anthropic import ChatAnthropic
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumpd, dumps, load, loads
from langchain_core.rate_limiters import InMemoryRateLimiter
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from langchain_retryrouter import (
    CircuitBreaker,
    FailureAction,
    FailureKind,
    GPTRouter,
    RateLimit,
    RetryBudget,
    RetryPolicy,
    RetryRouter,
    Route,
    SpendLimit,
    cli,
)
from langchain_retryrouter.stores import MemoryStore
from langchain_retryrouter.testing import FakeClock, FaultyGateway, Status
from tests.support.models import gpt_router
from tests.unit_tests.conftest import Twin
from tests.unit_tests.router.anthropic_wire import ANSWER, MODEL

KEY = "sk-proj-of-the-environment-1"

TOML = """\
stream_recovery = "error"

[retry_policy]
max_retries = 1
jitter = false

[budget]
capacity = 28

[failover_on]
content_filter = "failover"

[[routes]]  # the cheap one
model = "openai:gpt-4o"
name = "cheap"
api_key_env = "KEY_OF_THE_TEAM"
weight = 2
options = { seed = 1 }
[routes.params]
base_url = "URL/v1"
max_retries = 0
temperature = 0
default_headers = { connection = "close" }

[[routes]]
model = "anthropic:MODEL"
[routes.params]
base_url_env = "CLAUDE_URL"
api_key_env = "KEY_OF_THE_TEAM"
default_headers = { connection = "close" }
"""


WRITTEN: dict[str, Callable[[str], str]] = {
    ".toml": lambda url: TOML.replace("URL/v1", url).replace("MODEL", MODEL),
    ".json": lambda url: json.dumps(tomllib.loads(WRITTEN[".toml"](url)), indent=2),
    ".yaml": lambda url: yaml.safe_dump(tomllib.loads(WRITTEN[".toml"](url))),
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, gateway: FaultyGateway) -> None:
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "KEY_OF_THE_TEAM"):
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("CLAUDE_URL", gateway.url)
    gateway.respond("/v1/messages", ANSWER)


@pytest.fixture(params=[*WRITTEN, "mapping"])
def source(
    request: pytest.FixtureRequest, gateway: FaultyGateway, tmp_path: Path
) -> Any:
    """The same router as a file of each format, and as a mapping."""
    if request.param == "mapping":
        return json.loads(WRITTEN[".json"](gateway.openai_url))
    path = tmp_path / f"router{request.param}"
    path.write_text(WRITTEN[request.param](gateway.openai_url))
    return path


def write(folder: Path, text: str, kind: str = ".toml") -> Path:
    path = folder / f"router{kind}"
    path.write_text(text)
    return path


def problems(source: Any, **fields: Any) -> list[str]:
    """The lines of the error, without the folder."""
    with pytest.raises(ValueError) as refused:  # noqa: PT011 - the callers compare
        RetryRouter.from_config(source, **fields)
    folder = "" if isinstance(source, dict) else f"{Path(source).parent}/"
    return str(refused.value).replace(folder, "").splitlines()


def test_keys_that_begin_with_x_are_not_read(
    tmp_path: Path, gateway: FaultyGateway
) -> None:
    """They hold what anchors repeat, as in the files of docker compose."""
    text = f"""
x-route: &route
  api_key_env: KEY_OF_THE_TEAM
  params: {{base_url: "{gateway.openai_url}", temperature: 0}}
x-names: [a, {{b: 1}}]
routes:
  - {{<<: *route, model: "openai:gpt-4o"}}
  - {{<<: *route, model: "openai:gpt-4o-mini", weight: 2}}
"""
    router = RetryRouter.from_config(write(tmp_path, text, ".yaml"))
    assert [route.weight for route in router.routes] == [1, 2]
    assert all(getattr(one.model, "temperature", 1) == 0 for one in router.routes)


# --- strings ---


def test_strings_are_models() -> None:
    """A string is the model that `init_chat_model` makes, which sends once."""
    second_route = Route.model_validate(
        {"model": "anthropic:claude-opus-5", "weight": 2}
    )
    router = RetryRouter(routes=["openai:gpt-5.5", second_route])
    first, second = (route.model for route in router.routes)
    assert isinstance(first, ChatOpenAI)
    assert isinstance(second, ChatAnthropic)
    assert (first.max_retries, second.max_retries) == (0, 0)
    assert [route.name for route in router.routes] == ["gpt-5.5", "claude-opus-5"]


@pytest.mark.parametrize(
    ("routes", "says"),
    [
        (["gpt-5.5"], "'provider:model' such as 'openai:gpt-5.5', not 'gpt-5.5'"),
        (["openai:"], "not 'openai:'"),
        ([":gpt-5.5"], "not ':gpt-5.5'"),
        (["opnai:gpt-5.5"], "opnai"),
        # It would be a list of characters.
        ("openai:gpt-5.5", r"must be a list.*not 'openai:gpt"),
    ],
)
def test_a_string_of_another_form_is_named(routes: Any, says: str) -> None:
    """The error has the value and the form that is needed."""
    with pytest.raises(ValueError, match=says):
        RetryRouter(routes=routes)


@pytest.mark.parametrize(
    ("package", "spec", "command"),
    [
        ("langchain.chat_models", "openai:gpt-5.5", "pip install langchain"),
        ("langchain_cohere", "cohere:command-a", "pip install langchain-cohere"),
    ],
)
def test_a_missing_package_is_named(
    monkeypatch: pytest.MonkeyPatch, package: str, spec: str, command: str
) -> None:
    """The error has the command that installs it."""
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=command):
        RetryRouter(routes=[spec])
    with pytest.raises(ImportError, match=rf"routes\[0\].*{command}"):
        RetryRouter.from_config({"routes": [spec]})


# --- files ---


def test_a_file_of_each_format_is_the_same_router(
    twin: Twin, source: Any, gateway: FaultyGateway, clock: FakeClock
) -> None:
    """Fields, routes, keys and options are what the file says, and fail over."""
    router = RetryRouter.from_config(source, clock=clock)
    assert router.retry_policy == RetryPolicy(max_retries=1, jitter=False)
    assert router.stream_recovery == "error"
    assert router.budget is not None
    assert router.budget.tokens == 28
    assert router.failover_on == {FailureKind.CONTENT_FILTER: FailureAction.FAILOVER}
    cheap, claude = router.routes
    assert (cheap.name, cheap.weight, cheap.options) == ("cheap", 2, {"seed": 1})
    gateway.script(Status(503), Status(503))
    answer = twin.invoke(router, "hi")
    assert answer.response_metadata["retryrouter"]["route"] == MODEL == claude.name
    sent = gateway.requests[0]
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert (sent.json["temperature"], sent.json["seed"]) == (0, 1)
    assert KEY in str(gateway.requests[-1].headers)


def test_fields_of_code_are_taken_beside_a_file(source: Any) -> None:
    """What data cannot say is given as an argument, but nothing twice."""
    router = RetryRouter.from_config(source, accept=bool, tags=["x"])
    assert router.accept is bool
    assert router.tags == ["x"]
    for name, value in {"stream_recovery": "buffer", "routes": router.routes}.items():
        with pytest.raises(ValueError, match=f"{name}: is also given as an argument"):
            RetryRouter.from_config(source, **{name: value})


WRONG = """\
strategy = "priorty"

[retry_policy]
deadlin = 3

[[routes]]
model = "openai:gpt-5.5"
api_key_env = "NOT_SET"

[[routes]]
name = '''
[[routes]]
wieght = 2
'''
model = "anthropic:claude-opus-5"
params.api_key = "sk-123456789012"

[[routes]]
model = "openai:gpt-5.5"
api_key_env = "KEY_OF_THE_TEAM"
weight = -1
"""


def test_each_problem_is_named_with_its_line(tmp_path: Path) -> None:
    """All problems are told at once, also within arrays, tables and dotted keys."""
    expected = (
        "router.toml:1: strategy: Input should be 'priority', 'weighted', 'least_",
        "router.toml:4: retry_policy.deadlin: unknown key; did you mean 'deadline'?",
        "router.toml:8: routes[0].api_key_env: the environment variable NOT_SET is not",
        "router.toml:16: routes[1].params.api_key: a config must not contain keys",
        "router.toml:21: routes[2].weight: Input should be",
    )
    found = problems(write(tmp_path, WRONG))
    for line, begins in zip(found, expected, strict=True):
        assert line.startswith(begins)


_DATA = Path(__file__).parents[1] / "data/config_problems.json"
# The ending of a file, its text, and how the first problem in it begins.
LINES: dict[str, tuple[str, str, str]] = json.loads(_DATA.read_text("utf-8"))


@pytest.mark.parametrize("row", LINES)
@pytest.mark.filterwarnings("ignore:WARNING! max_token")
def test_a_problem_is_named_with_its_line(tmp_path: Path, row: str) -> None:
    """The line is that of the key, whatever the form of the file."""
    kind, text, says = LINES[row]
    text = text.replace("RAW", 'api_key_env = "KEY_OF_THE_TEAM"')
    assert problems(write(tmp_path, text, kind))[0].startswith(says)


def test_a_file_of_another_encoding_is_named_with_its_line(tmp_path: Path) -> None:
    """Of a file that an editor has saved as Latin-1."""
    path = tmp_path / "router.toml"
    path.write_bytes(b"# a\n# caf\xe9\nroutes = []\n")
    with pytest.raises(ValueError, match=r"router\.toml:2: must be UTF-8"):
        RetryRouter.from_config(path)


def test_yaml_needs_pyyaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has the command that installs it; the other formats need nothing."""
    monkeypatch.setitem(sys.modules, "yaml", None)
    with pytest.raises(ImportError, match="pip install PyYAML"):
        RetryRouter.from_config(write(tmp_path, "a: 1", ".yaml"))


SECRETS: list[dict[str, Any]] = [
    {"api_key": KEY},
    {"params": {"openai_api_key": KEY}},
    {"params": {"azure_ad_token": KEY}},
    {"params": {"default_headers": {"Authorization": f"Bearer {KEY}"}}},
    {"params": {"default_headers": {"X-Auth": KEY}}},
    {"params": {"base_url": f"https://127.0.0.1/v1?api-key={KEY}"}},
    {"params": {"base_url": f"https://me:{KEY}@127.0.0.1/v1"}},
    {"params": {"api_key_env": KEY}},
    {"options": {"extra_headers": {"x-api-key": KEY}}},
    {"options": {"user": f"Bearer {KEY}"}},
    {"api_key_env": KEY},
]


def test_headers_take_their_keys_from_the_environment(gateway: FaultyGateway) -> None:
    """`NAME_env` is read at any depth, and `to_config` writes the names again."""
    headers = {"X-Team": "a", "X-Key_env": "KEY_OF_THE_TEAM"}
    table = {
        "model": "openai:gpt-4o",
        "name": "one",
        "api_key_env": "KEY_OF_THE_TEAM",
        "params": {"base_url": gateway.openai_url, "default_headers": headers},
        "options": {"extra_headers": {"X-Other_env": "KEY_OF_THE_TEAM"}},
    }
    router = RetryRouter.from_config({"routes": [table]})
    router.invoke("hi")
    sent = {name.lower(): value for name, value in gateway.requests[0].headers.items()}
    assert (sent["x-team"], sent["x-key"], sent["x-other"]) == ("a", KEY, KEY)
    assert router.to_config() == {"routes": [table]}
    headers["X-Key_env"] = "NOT_SET"
    (found,) = problems({"routes": [table]})
    where = "routes[0].params.default_headers.X-Key_env"
    assert f"{where}: the environment variable NOT_SET is not set" in found


ONE = "openai:gpt-4o"


ODD_FORMS: list[Any] = [
    [{"model": ONE, "api_key": KEY}],
    {"routes": {"model": ONE, "api_key": KEY}},
    {"routes": KEY},
    {"routes": [[{"api_key": KEY}]]},
    {"routes": [KEY]},
    {"routes": [{"model_env": "KEY_OF_THE_TEAM"}]},
    {"routes": [ONE], "store_env": "KEY_OF_THE_TEAM"},
    {"routes": [{"model": [ONE, KEY]}]},
    {"routes": [{"model": ONE, "params": ["api_key", KEY]}]},
    {"routes": [{"model": ONE, "options": ["api_key", KEY]}]},
    {"routes": [{"model": ONE, "api_keys": KEY}]},
]


@pytest.mark.parametrize("given", [*SECRETS, *ODD_FORMS], ids=str)
def test_a_key_in_the_wrong_place_is_not_shown(tmp_path: Path, given: Any) -> None:
    """A key is refused, wherever it is; what is of another form may hold one, too."""
    is_secret = given in SECRETS
    config = {"routes": [{"model": ONE, **given}]} if is_secret else given
    found = problems(write(tmp_path, json.dumps(config), ".json"))
    assert KEY not in str(found)
    if is_secret:
        assert len(found) == 1
        assert "environment variable" in found[0]


def test_a_key_is_not_shown_by_what_the_model_refuses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The provider's class prints its arguments, the key among them."""
    monkeypatch.setenv("KEY_OF_THE_TEAM", f"{KEY}\n")
    params = {"n": 2, "streaming": True, "api_key_env": "KEY_OF_THE_TEAM"}
    assert KEY not in str(
        problems({"routes": [{"model": "openai:m", "params": params}]})
    )


def test_a_local_server_without_keys_can_be_named() -> None:
    """A placeholder that is too short for a key is allowed."""
    table = {"model": "openai:llama", "params": {"api_key": "EMPTY"}}
    assert RetryRouter.from_config({"routes": [table]}).routes[0].name == "llama"


# --- the command ---


@pytest.fixture
def checked(tmp_path: Path, gateway: FaultyGateway) -> Path:
    """A file with two routes at the gateway."""
    return write(tmp_path, WRITTEN[".toml"](gateway.openai_url))


def test_check_prints_the_worst_case(
    checked: Path, gateway: FaultyGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    """`check` builds the router, prints what a call costs, and sends nothing."""
    assert cli.main(["check", str(checked)]) == 0
    printed = capsys.readouterr().out
    assert "cheap" in printed
    assert "in all" in printed
    assert not gateway.requests


def test_check_names_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A bad file is exit code 2 and its problems; a missing package is 1."""
    path = write(tmp_path, WRONG)
    assert cli.main(["check", str(path)]) == 2
    assert f"{path}:4: retry_policy.deadlin" in capsys.readouterr().err
    assert cli.main(["check", str(tmp_path / "none.toml")]) == 2
    path = write(tmp_path, 'routes = ["cohere:command-a"]')
    assert cli.main(["check", str(path)]) == 1
    assert "pip install langchain-cohere" in capsys.readouterr().err


def test_ping_asks_each_route_once(
    checked: Path, gateway: FaultyGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each route gets one short request; one that fails is exit code 1."""
    assert cli.main(["check", str(checked), "--ping"]) == 0
    printed = capsys.readouterr().out
    assert printed.count(" ms  ok") == 2
    limits = [one.json.get("max_completion_tokens") for one in gateway.requests]
    assert len(limits) == 2
    assert limits[0] == gateway.requests[1].json["max_tokens"] == 16
    gateway.script(Status(401))
    assert cli.main(["check", str(checked), "--ping"]) == 1
    printed = capsys.readouterr().out
    assert "ms  authentication: Error code: 401" in printed
    assert printed.count(" ms  ok") == 1
    assert len(gateway.requests) == 4


def test_ping_prints_nothing_that_a_terminal_obeys(
    checked: Path, gateway: FaultyGateway, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a provider says is shown in one line, as `trace` shows it."""
    gateway.script(Status(401, message="a\x1b[31m\x07b\nc\u202e"))
    assert cli.main(["check", str(checked), "--ping"]) == 1
    printed = capsys.readouterr().out
    assert "401 - a�[31m�b c�\n" in printed
    assert not set(printed) & {"\x1b", "\x07", "\u202e"}


pytestmark = pytest.mark.filterwarnings("ignore:The function `loads? ?` is in beta")

OTHER = "sk-proj-of-nobody-at-all-22"


def openai(**fields: Any) -> Any:
    return ChatOpenAI(**{"model": "gpt-4o", **fields})


def claude(**fields: Any) -> Any:
    given = {"model_name": "claude-opus-5", "timeout": None, "stop": None, **fields}
    return ChatAnthropic(**given)


def rated(**fields: Any) -> Route:
    """A route with prices."""
    return Route(input_price=2.0, output_price=8.0, **fields)


class Seed(IntEnum):
    FIRST = 1


ROUTERS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": lambda: {"routes": [openai(), claude()]},
    "strings": lambda: {"routes": ["openai:gpt-4o", "anthropic:claude-opus-5"]},
    "arguments": lambda: {
        "routes": [
            openai(temperature=0.5, base_url="http://127.0.0.1:1/v1", timeout=3),
            claude(max_tokens_to_sample=77, base_url="http://127.0.0.1:1"),
        ]
    },
    "routes": lambda: {
        "routes": [
            Route(model=openai(), name="a", weight=3, supports_prefill=False),
            rated(model=claude()),
            claude().bind(seed=1),
        ],
        "strategy": "weighted",
        "max_price": None,
    },
    "fields": lambda: {
        "routes": [openai()],
        "retry_policy": RetryPolicy(max_retries=0, deadline=30.0, jitter=False),
        "breaker_settings": {"failure_threshold": 7},
        "failover_on": {"content_filter": "failover", "length": "retry"},
        "hedge_after": 4.0,
        "seed": 3,
        "stream_recovery": "buffer",
        "tags": ["a"],
        "metadata": {"team": "b"},
    },
    "enumerations": lambda: {
        "routes": [openai().bind(seed=Seed.FIRST)],
        "failover_on": [{"quota": "raise"}, {FailureKind.LENGTH: FailureAction.RETRY}],
    },
    "no breakers": lambda: {"routes": [openai()], "breaker_settings": None},
    "limits": lambda: {
        "routes": [rated(model=openai(), rate_limit=RateLimit(requests_per_minute=60))],
        "rate_limit": RateLimit(max_concurrency=3, name="all"),
        "budget": RetryBudget(capacity=28),
        "max_cost": 0.5,
        "spend_limit": SpendLimit(5.0, per="month", name="team"),
    },
}


@pytest.mark.parametrize("row", ROUTERS)
def test_what_is_written_makes_an_equal_router(row: str) -> None:
    """As JSON and as YAML, too; and its config is the same again."""
    router = RetryRouter(**ROUTERS[row]())
    config = json.loads(json.dumps(router.to_config()))
    assert yaml.safe_load(yaml.safe_dump(router.to_config())) == config
    assert KEY not in str(config)
    again = RetryRouter.from_config(config)
    assert again.to_config() == config
    for name in ("strategy", "retry_policy", "breaker_settings", "failover_on"):
        assert getattr(again, name) == getattr(router, name)
    for one, other in zip(router.routes, again.routes, strict=True):
        for name in ("name", "weight", "options", "identity"):
            assert getattr(one, name) == getattr(other, name)
        assert str(one.rate_limit) == str(other.rate_limit)
    assert str(again.budget) == str(router.budget)


FILE = """\
[[routes]]
model = "openai:gpt-4o"
api_key_env = "KEY_OF_THE_TEAM"
params = { temperature = 0.5, base_url_env = "URL" }

[[routes]]
model_env = "SPEC"
base_urls_env = ["URL", "OTHER_URL"]
"""


def test_what_a_file_says_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the names of its variables, and what was changed since."""
    monkeypatch.setenv("URL", "http://127.0.0.1:1/v1")
    monkeypatch.setenv("OTHER_URL", "http://127.0.0.1:2/v1")
    monkeypatch.setenv("SPEC", "anthropic:claude-opus-5")
    path = tmp_path / "router.toml"
    path.write_text(FILE)
    router = RetryRouter.from_config(path, hedge_after=3.0)
    assert router.to_config() == {
        "hedge_after": 3.0,
        "routes": [
            {
                "model": "openai:gpt-4o",
                "api_key_env": "KEY_OF_THE_TEAM",
                "params": {"temperature": 0.5, "base_url_env": "URL"},
                "name": "gpt-4o",
            },
            {
                "model_env": "SPEC",
                "base_urls_env": ["URL", "OTHER_URL"],
                "name": "claude-opus-5",
            },
        ],
    }


def test_a_model_that_was_replaced_is_named() -> None:
    """The config of the old one would be written."""
    router = RetryRouter.from_config({"routes": ["openai:gpt-4o"]})
    other = router.routes[0].model_copy(update={"model": openai(temperature=0.7)})
    with pytest.raises(ValueError, match="the model of 'gpt-4o' is not the config's"):
        RetryRouter(routes=[other]).to_config()


def test_where_a_store_is_is_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it was given; an address with a password must be in a variable."""
    address = "redis://:a-long-password@127.0.0.1:1/0"
    monkeypatch.setenv("REDIS_URL", address)
    routes = [{"model": "openai:gpt-4o", "name": "gpt-4o"}]
    for store in ({"store_env": "REDIS_URL"}, {"store": "redis://127.0.0.1:1/0"}):
        with RetryRouter.from_config({**store, "routes": routes}) as router:
            assert "127.0.0.1" in repr(router.store)
            assert router.to_config() == {**store, "routes": routes}
    limit = {"requests_per_minute": 5}
    config = {
        "store_env": "REDIS_URL",
        "budget": {"capacity": 4},
        "rate_limit": {**limit, "name": "all"},
        "spend_limit": {"amount": 5.0},
        "routes": [
            {
                **routes[0],
                "rate_limit": limit,
                "spend_limit": {"amount": 2.0, "per": "hour", "name": "team"},
            }
        ],
    }
    with RetryRouter.from_config(config) as router:
        assert router.to_config() == config
        for money in (router.spend_limit, router.routes[0].spend_limit):
            assert money is not None
            assert money.is_shared
    with pytest.raises(ValueError, match=r"store: a config must.*store_env = 'NAME'"):
        RetryRouter.from_config({"store": address, "routes": routes})
    with pytest.raises(ValueError, match="store: is not data") as refused:
        RetryRouter(routes=[openai()], store=MemoryStore()).to_config()
    assert "password" not in str(refused.value)


Fields: TypeAlias = Callable[[], dict[str, Any]]
# What `to_config` says of fields that `dumps` cannot write either.
LOST: dict[str, Fields] = {
    "accept: is not data": lambda: {"accept": bool},
    "clock: is not data": lambda: {"clock": FakeClock()},
    "failover_on: is not data": lambda: {"failover_on": {LookupError: "raise"}},
    "config: failover_on: is not": lambda: {"failover_on": [{"quota": "raise"}, id]},
    "retry_policy: is not data": lambda: {"retry_policy": RetryPolicy(on_retry=print)},
    r"routes\[0\].accept: is not data": lambda: {
        "routes": [Route(model=claude(), accept=bool)]
    },
    r"routes\[0\].breaker: is not data": lambda: {
        "routes": [Route(model=openai(), breaker=CircuitBreaker())]
    },
    "FakeListChatModel has no 'provider:model'": lambda: {
        "routes": [FakeListChatModel(responses=["a"])]
    },
}
# What makes another model than the config would.
ONLY_IN_A_MODEL: dict[str, Callable[[], Any]] = {
    "openai_api_key is not in the": lambda: openai(api_key=SecretStr(OTHER)),
    r"routes\[0\].model: ChatOpenAI.rate_limiter is not data": lambda: openai(
        rate_limiter=InMemoryRateLimiter()
    ),
    r"routes\[0\]: is of a pool": lambda: Route.pool(
        openai(), base_urls=["http://a", "http://b"]
    ),
    "authorization: a config must not contain keys": lambda: openai(
        default_headers={"authorization": OTHER}
    ),
    r"routes\[0\].options: contain values that are not plain data": lambda: (
        openai().bind(response_format=RetryPolicy)
    ),
}
# What a config has, and `dumps` cannot write, since others may share it.
SHARED: dict[str, Fields] = {
    "budget": lambda: {"budget": RetryBudget()},
    "limit": lambda: {"rate_limit": RateLimit(max_concurrency=3)},
    "limit of a model": lambda: {
        "routes": [gpt_router("http://h", "a", rate_limit=RateLimit(max_concurrency=3))]
    },
    "money": lambda: {"spend_limit": SpendLimit(5.0)},
    "money of a route": lambda: {
        "routes": [rated(model=claude(), spend_limit=SpendLimit(5.0))]
    },
}


@pytest.mark.parametrize("says", LOST)
def test_what_cannot_be_written_is_named(says: str) -> None:
    """Nothing is left out of a config silently."""
    with pytest.raises(ValueError, match=says):
        RetryRouter(**{"routes": [openai()], **LOST[says]()}).to_config()


@pytest.mark.parametrize("says", ONLY_IN_A_MODEL)
def test_what_only_a_model_has_is_named(says: str) -> None:
    """No key is in the message."""
    with pytest.raises(ValueError, match=says) as refused:
        RetryRouter(routes=[ONLY_IN_A_MODEL[says]()]).to_config()
    assert OTHER not in str(refused.value)


@pytest.mark.parametrize("row", [*LOST, *SHARED])
def test_what_cannot_be_dumped_is_not_loaded(row: str) -> None:
    """What `dumps` cannot write is written so that `load` says so."""
    fields = {"routes": [rated(model=openai())], **{**LOST, **SHARED}[row]()}
    data = dumpd(RetryRouter(**fields))
    assert "not_implemented" in str(data)
    assert KEY not in str(data)
    with pytest.raises(NotImplementedError, match="doesn't implement"):
        load(data, **ALLOWED)


LIMITS: dict[str, Callable[..., Any]] = {
    "rate_limit": lambda **fields: RateLimit(requests_per_minute=60, **fields),
    "spend_limit": lambda **fields: SpendLimit(5.0, **fields),
}


@pytest.mark.parametrize("field", LIMITS)
@pytest.mark.parametrize("first", ["router", "route"])
def test_what_is_shared_needs_a_name(field: str, first: str) -> None:
    """Without one, two tables would make two limits of one, and so twice the limit."""

    def share(limit: Any) -> RetryRouter:
        given: dict[str, Any] = {field: limit}
        is_above = first == "router"
        one = rated(model=openai(), **({} if is_above else given))
        other = rated(model=claude(), **given)
        return RetryRouter(routes=[one, other], **(given if is_above else {}))

    with pytest.raises(ValueError, match=rf"routes\[1\].{field}: is also") as refused:
        share(LIMITS[field]()).to_config()
    assert "give it a name, as in name='account'" in str(refused.value)
    again = RetryRouter.from_config(share(LIMITS[field](name="account")).to_config())
    above = again if first == "router" else again.routes[0]
    assert getattr(above, field) is getattr(again.routes[1], field)


def test_limits_of_one_name_are_one() -> None:
    """Two routes of one account share its limit; other numbers are a mistake."""
    limit = {"name": "account", "requests_per_minute": 60}
    table = {"model": "openai:gpt-4o", "rate_limit": limit}
    router = RetryRouter.from_config({"routes": [table, table]})
    first, second = router.routes
    assert first.rate_limit is second.rate_limit
    assert isinstance(first.rate_limit, RateLimit)
    other = {**table, "rate_limit": {**limit, "requests_per_minute": 61}}
    with pytest.raises(ValueError, match="'account' has other numbers elsewhere"):
        RetryRouter.from_config({"routes": [table, other]})


def test_a_pool_of_keys_is_one_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each key has a variable of its own; one table makes all routes, and back."""
    monkeypatch.setenv("SECOND_KEY", OTHER)
    table = {
        "model": "openai:gpt-4o",
        "name": "team",
        "api_keys_env": ["KEY_OF_THE_TEAM", "SECOND_KEY"],
        "tier": 1,
    }
    config = {"routes": [table, {"model": "openai:gpt-4o", "name": "gpt-4o"}]}
    router = RetryRouter.from_config(config)
    assert [route.name for route in router.routes] == ["team#1", "team#2", "gpt-4o"]
    models: list[Any] = [route.model for route in router.routes]
    keys = [model.openai_api_key.get_secret_value() for model in models]
    assert keys == [KEY, OTHER, KEY]
    assert router.to_config() == config
    for name, says in {
        "api_keys": r"routes\[0\].api_keys\[1\]: a config must not contain keys",
        "api_keys_env": r"api_keys_env\[1\]: must be the name of an environment",
    }.items():
        wrong = {**table, name: ["KEY_OF_THE_TEAM", "sk-proj-literal-22"]}
        with pytest.raises(ValueError, match=says) as refused:
            RetryRouter.from_config({"routes": [wrong]})
        assert "sk-proj-literal-22" not in str(refused.value)
    same = {**table, "api_keys_env": ["KEY_OF_THE_TEAM"] * 2}
    with pytest.raises(ValueError, match=r"\[0\].api_keys_env: api_keys has an entry"):
        RetryRouter.from_config({"routes": [same]})


# --- `dumps` and `loads` ---

KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GPT_ROUTER_API_KEY")
ALLOWED: dict[str, Any] = {
    "allowed_objects": [RetryRouter, Route, ChatOpenAI, ChatAnthropic, GPTRouter],
    "valid_namespaces": ["langchain_retryrouter"],
    "secrets_map": dict.fromkeys(KEYS, KEY),
}


def routes() -> list[Any]:
    model = openai(api_key=SecretStr(KEY), temperature=0.5)
    bound: Any = model.bind(seed=1)
    first = rated(model=bound, name="a", weight=3)
    return [first, rated(model=claude(api_key=SecretStr(KEY)))]


@pytest.mark.parametrize("breakers", [None, {"failure_threshold": 7}])
def test_a_router_is_written_and_read(breakers: Any) -> None:
    """Its fields and routes are the same, and its keys come from outside."""
    router = RetryRouter(
        routes=routes(),
        retry_policy=RetryPolicy(max_retries=0, deadline=30.0),
        breaker_settings=breakers,
        strategy="weighted",
        hedge_after=4.0,
        failover_on={"content_filter": "failover"},
    )
    text = dumps(router)
    assert KEY not in text
    again = loads(text, **ALLOWED)
    assert isinstance(again, RetryRouter)
    for name in ("retry_policy", "breaker_settings", "strategy", "hedge_after"):
        assert getattr(again, name) == getattr(router, name)
    assert again.failover_on == {FailureKind.CONTENT_FILTER: FailureAction.FAILOVER}
    first, second = again.routes
    assert (first.name, first.weight, first.input_price) == ("a", 3, 2.0)
    assert first.options == {"seed": 1}
    assert isinstance(first.model, ChatOpenAI)
    assert first.model.openai_api_key == SecretStr(KEY)
    assert first.model.temperature == 0.5
    assert isinstance(second.model, ChatAnthropic)
    assert dumps(again) == text


def test_each_key_of_a_pool_has_its_name() -> None:
    """No two routes are read with the same key, silently or not."""
    other = Route(model=openai(model="o", api_key=SecretStr(KEY)), tier=0)
    model = openai(api_key=SecretStr(KEY))
    keys = {f"OPENAI_API_KEY_{n}": f"{KEY}{n}" for n in (1, 2, 3)}
    pool = Route.pool(model, api_keys=[*keys.values()][:2])
    router = RetryRouter(routes=[*pool, other, routes()[1]])
    text = dumps(router)
    assert KEY not in text
    secrets = {**keys, "ANTHROPIC_API_KEY": KEY}
    again = loads(text, **{**ALLOWED, "secrets_map": secrets})
    assert [
        one.openai_api_key.get_secret_value()
        for one in (route.model for route in again.routes[:3])
        if isinstance(one, ChatOpenAI) and isinstance(one.openai_api_key, SecretStr)
    ] == [*keys.values()]
    assert all(dumps(again).count(f'"{name}"') == 1 for name in secrets)
    assert [route.group for route in again.routes] == [
        route.group for route in router.routes
    ]
    with pytest.raises(ValueError, match="of a pool have the same key and address"):
        loads(text, **{**ALLOWED, "secrets_map": dict.fromkeys(secrets, KEY)})


def test_one_key_keeps_its_name() -> None:
    """Addresses of one key, and functions that return a key, need no other name."""
    model = openai(api_key=SecretStr(KEY))
    pool = Route.pool(model, base_urls=["http://a/v1", "http://b/v1"])
    text = dumps(RetryRouter(routes=[*pool, routes()[0]]))
    assert text.count('["OPENAI_API_KEY"]') == 3
    claude = routes()[1].model
    functions = [lambda: KEY, lambda: KEY]
    made = RetryRouter(routes=Route.pool(claude, api_keys=functions))
    assert "not_implemented" in dumps(made)


def test_the_key_of_a_cache_is_what_is_asked() -> None:
    """Neither the policy nor the process is in it, but bound tools are."""

    def look_up(word: str) -> str:
        """Look a word up."""
        return word

    def key(router: Any, **fields: Any) -> str:
        model = RetryRouter(routes=routes(), **fields) if router is None else router
        return str(model._get_llm_string())  # noqa: SLF001 - LangChain asks for it

    router = RetryRouter(routes=routes())
    dumpd(router)
    bound: Any = router.bind_tools([look_up])
    assert key(router) == key(None, retry_policy=RetryPolicy(max_retries=0))
    assert "look_up" in key(bound.bound)
    assert "look_up" not in key(router)
