"""Routers from strings and files, and what is wrong with a file."""

import json
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from langchain_anthropic import ChatAnthropic
from langchain_openai import ChatOpenAI

from langchain_retryrouter import (
    FailureAction,
    FailureKind,
    RetryPolicy,
    RetryRouter,
    Route,
    cli,
)
from langchain_retryrouter.testing import FakeClock, FaultyGateway, Status
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
    monkeypatch.setenv("KEY_OF_THE_TEAM", KEY)
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


def test_strings_are_models(monkeypatch: pytest.MonkeyPatch) -> None:
    """A string is the model that `init_chat_model` makes, which sends once."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
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
