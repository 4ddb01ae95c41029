"""The same calls through langchain-community's and langchain-openai's classes and ours.

Each peer and our class make the same calls to one gateway; the requests it sees and
the results they return are compared field by field. What differs is listed in `WANTED`,
with the reason; the test fails on any other difference, and on a listed one that is
none.
"""

import ast
import asyncio
import importlib
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from langchain_core.language_models.llms import BaseLLM
from langchain_core.load import dumpd
from langchain_core.outputs import LLMResult

from langchain_retryrouter.llms import openai as ours
from langchain_retryrouter.testing import FaultyGateway, RecordedRequest, Status

from .conftest import KEY, Recorder

PEERS = {
    "community": "langchain_community.llms.openai",
    "openai": "langchain_openai.llms",
}


@dataclass(frozen=True)
class Case:
    """One call: how the model is made, which method is called, and with what."""

    name: str
    method: str = "generate"
    fields: Mapping[str, Any] = field(default_factory=dict)
    ask: Any = ("hi",)
    options: Mapping[str, Any] = field(default_factory=dict)


CASES = [
    Case("plain"),
    Case("several prompts", ask=("a", "b", "c")),
    Case("batches", ask=("a", "b", "c"), fields={"batch_size": 2}),
    Case("several answers", fields={"n": 2, "best_of": 3}),
    Case("n of the call", options={"n": 2}),
    Case("stop", options={"stop": ["stub"]}),
    Case("chosen parameters", fields={"temperature": 0, "max_tokens": 5, "top_p": 0.5}),
    Case("penalties", fields={"frequency_penalty": 0.1, "presence_penalty": 0.2}),
    Case("bias", fields={"logit_bias": {"50256": -100}}),
    Case("model_kwargs", fields={"model_kwargs": {"user": "me", "echo": True}}),
    Case("option of the call", options={"user": "me"}),
    Case("organization", fields={"organization": "org-1"}),
    Case("default headers", fields={"default_headers": {"x-mine": "1"}}),
    Case("default query", fields={"default_query": {"q": "1"}}),
    Case("stream", method="stream", ask="hi"),
    Case("stream with stop", method="stream", ask="hi", options={"stop": ["stub"]}),
    Case("streaming inside", fields={"streaming": True}),
]
ONLY_LANGCHAIN_OPENAI = [
    Case("logprobs", fields={"logprobs": 2}),
    Case("logprobs streamed", "stream", {"logprobs": 2}, "hi"),
    Case("seed", fields={"seed": 7}),
    Case("extra body", fields={"extra_body": {"top_k": 3}}),
]

NO_NULLS = "what is not set is not sent: there are servers that read a null as a zero"
NO_ENDLESS_WAIT = (
    "None is no limit at all to them, so that a silent server holds a call for ever;"
    " to us it is the SDK's own limit of 600 seconds"
)
ATTEMPT_LOG = "tells the attempts of the call"
BOTH_TWINS = "the peer forgets it in its async twin"
OWN_NAME = "a user agent says whose it is"
ONE_KEY = "lets a gateway know an attempt that repeats another"
ONE_STRING = "there are servers, such as Ollama, that refuse a list of one prompt"
RAW = "the SDK's mark of a request for the raw response, which ChatOpenAI sends too"
COMMON = {
    "body prompt": ONE_STRING,
    "header idempotency-key": ONE_KEY,
    "header x-stainless-raw-response": RAW,
    "header x-stainless-read-timeout": NO_ENDLESS_WAIT,
    "result llm_output.retryrouter": ATTEMPT_LOG,
    "callback info.retryrouter": ATTEMPT_LOG,
}
COMMUNITY = {**COMMON, "body logit_bias": NO_NULLS}
OPENAI = {**COMMON, "body seed": NO_NULLS, "body logprobs": NO_NULLS}
WANTED: dict[tuple[str, str], dict[str, str]] = {
    ("community", "OpenAI"): COMMUNITY,
    ("community", "AzureOpenAI"): {**COMMUNITY, "header user-agent": OWN_NAME},
    ("openai", "OpenAI"): OPENAI,
    ("openai", "AzureOpenAI"): {**OPENAI, "header user-agent": OWN_NAME},
}
WANTED_ASYNC = {"result llm_output.system_fingerprint": BOTH_TWINS}

# Of no meaning, or different with every request.
IGNORED_HEADERS = {"host", "content-length"}
BOUNDED = {"gzip", "deflate"}


@contextmanager
def old_habits() -> Iterator[None]:
    """The peers' own warnings: deprecations of theirs, and of pydantic's."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def peer_module(peer: str) -> Any:
    """The module with the classes to compare with."""
    with old_habits():
        return importlib.import_module(PEERS[peer])


def settings(cls: str, gateway: FaultyGateway) -> dict[str, Any]:
    """What all of them take, to ask the gateway."""
    if cls == "AzureOpenAI":
        return {
            "api_key": KEY,
            "azure_endpoint": gateway.url,
            "azure_deployment": "my-deployment",
            "api_version": "2024-10-21",
            "max_retries": 0,
        }
    return {"api_key": KEY, "base_url": gateway.openai_url, "max_retries": 0}


@dataclass
class Seen:
    """What one call did."""

    requests: list[RecordedRequest]
    result: Any
    info: dict[str, Any]


def run(module: Any, cls: str, case: Case, gateway: FaultyGateway, twin: Any) -> Seen:
    """Make the model, make the call, and close what the model left open."""
    gateway.reset_log()
    recorder = Recorder()
    fields = {**settings(cls, gateway), **case.fields, "callbacks": [recorder]}
    with old_habits():
        llm = getattr(module, cls)(**fields)
        try:
            result = (
                asyncio.run(_acall(llm, case)) if twin.is_async else _call(llm, case)
            )
        finally:
            if module is not ours:
                llm.client._client.close()  # noqa: SLF001 - the SDK's name
    last = recorder.results[-1].generations[0][0] if case.method == "stream" else None
    return Seen(gateway.requests, result, (last.generation_info or {}) if last else {})


def _call(llm: Any, case: Case) -> Any:
    ask = list(case.ask) if case.method == "generate" else case.ask
    answer = getattr(llm, case.method)(ask, **case.options)
    return list(answer) if case.method == "stream" else answer


async def _acall(llm: Any, case: Case) -> Any:
    try:
        if case.method == "stream":
            return [chunk async for chunk in llm.astream(case.ask, **case.options)]
        return await llm.agenerate(list(case.ask), **case.options)
    finally:
        await llm.async_client._client.close()  # noqa: SLF001 - the SDK's name


def differences(theirs: Seen, mine: Seen) -> Iterator[tuple[str, Any, Any]]:
    """Each field in which two calls differ, with both values."""
    if len(theirs.requests) != len(mine.requests):
        yield "number of requests", len(theirs.requests), len(mine.requests)
    for their, my in zip(theirs.requests, mine.requests, strict=False):
        yield from _apart("body ", their.payload, my.payload)
        if their.payload == my.payload and len(their.body) != len(my.body):
            yield "how the body is written", their.body, my.body
        yield from _apart("header ", _headers(their), _headers(my))
        where = {"method": their.method, "path": their.path, "query": their.query}
        here = {"method": my.method, "path": my.path, "query": my.query}
        yield from _apart("", where, here)
    yield from _apart("callback info.", theirs.info, mine.info)
    if isinstance(theirs.result, LLMResult):
        output, my_output = theirs.result.llm_output, mine.result.llm_output
        yield from _apart("result llm_output.", output or {}, my_output)
        if theirs.result.generations != mine.result.generations:
            yield (
                "result generations",
                theirs.result.generations,
                mine.result.generations,
            )
    elif theirs.result != mine.result:
        yield "result", theirs.result, mine.result


def _headers(request: RecordedRequest) -> dict[str, str]:
    headers = {n: v for n, v in request.headers.items() if n not in IGNORED_HEADERS}
    # An HTTP library offers what happens to be installed; we, what we can bound.
    packings = headers.get("accept-encoding", "").split(", ")
    headers["accept-encoding"] = ", ".join(p for p in packings if p in BOUNDED)
    return headers


MISSING = "(missing)"


def _apart(
    prefix: str, theirs: Mapping[str, Any], mine: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    for name in sorted(theirs.keys() | mine.keys()):
        their, my = theirs.get(name, MISSING), mine.get(name, MISSING)
        if their != my:
            yield prefix + name, their, my


@pytest.mark.parametrize("cls", ["OpenAI", "AzureOpenAI"])
@pytest.mark.parametrize("peer", PEERS)
def test_only_what_is_wanted_differs(
    twin: Any, gateway: FaultyGateway, peer: str, cls: str
) -> None:
    """Same calls, same requests, same results; but for the differences in the list."""
    module = peer_module(peer)
    cases = CASES if peer == "community" else CASES + ONLY_LANGCHAIN_OPENAI
    found: dict[str, str] = {}
    for case in cases:
        theirs = run(module, cls, case, gateway, twin)
        mine = run(ours, cls, case, gateway, twin)
        for name, their, my in differences(theirs, mine):
            found.setdefault(name, f"{case.name}: theirs {their!r}, ours {my!r}")
    wanted = WANTED[peer, cls] | (WANTED_ASYNC if twin.is_async else {})
    assert {name: found[name] for name in sorted(found.keys() - wanted.keys())} == {}
    assert sorted(wanted.keys() - found.keys()) == []


CHAT_CASES = [
    Case("plain", "invoke", ask="hi"),
    Case("stop", "invoke", ask="hi", options={"stop": ["stub"]}),
    Case("parameters", "invoke", {"temperature": 0, "top_p": 0.5, "seed": 3}, "hi"),
    Case("penalties", "invoke", {"frequency_penalty": 1, "presence_penalty": 1}, "hi"),
    Case("bias", "invoke", {"logit_bias": {"50256": -100}}, "hi"),
    Case("logprobs", "invoke", {"logprobs": True, "top_logprobs": 2}, "hi"),
    Case("limit", "invoke", {"max_tokens": 5}, "hi"),
    Case("model_kwargs", "invoke", {"model_kwargs": {"user": "me"}}, "hi"),
    Case("extra body", "invoke", {"extra_body": {"top_k": 3}}, "hi"),
    Case("headers", "invoke", {"default_headers": {"x-mine": "1"}}, "hi"),
    Case("organization", "invoke", {"organization": "org-1"}, "hi"),
    Case("stream", "stream", {"stream_usage": True}, "hi"),
    Case("stream without usage", "stream", {"stream_usage": False}, "hi"),
]
WANTED_OF_CHAT = {
    "header idempotency-key": ONE_KEY,
    "header x-stainless-read-timeout": NO_ENDLESS_WAIT,
    "body stream": "false is the API's own default",
    "body max_tokens": "what langchain-community's class sends, and all servers know",
    "body max_completion_tokens": "the other side of it",
}


def test_the_chat_class_asks_as_chat_openai_does(gateway: FaultyGateway) -> None:
    """One prompt to `OpenAIChat` is one message of `ChatOpenAI`, and so is the answer.

    There is no peer of the same kind: langchain-community's does not start, and
    langchain-openai has none. (Nor does its async client live through two event loops.)
    """
    peer = importlib.import_module("langchain_openai").ChatOpenAI
    found: dict[str, str] = {}
    for case in CHAT_CASES:
        fields = {**settings("OpenAIChat", gateway), "model": "gpt-4o", **case.fields}
        seen = []
        for cls in (peer, ours.OpenAIChat):
            gateway.reset_log()
            answer = _call(cls(**fields), case)
            chunks = answer if case.method == "stream" else [answer]
            said = "".join(getattr(chunk, "text", chunk) for chunk in chunks)
            seen.append(Seen(gateway.requests, said, {}))
        for name, their, my in differences(*seen):
            found.setdefault(name, f"{case.name}: theirs {their!r}, ours {my!r}")
    assert {n: found[n] for n in sorted(found.keys() - WANTED_OF_CHAT.keys())} == {}
    assert sorted(WANTED_OF_CHAT.keys() - found.keys()) == []


SAID = ("_llm_type", "_identifying_params", "_invocation_params", "lc_secrets")
PARAMS = {"_identifying_params", "_invocation_params"}
WANTED_OF_SAID = {
    ("community", "OpenAI"): {*PARAMS, "saved"},
    ("community", "AzureOpenAI"): {*PARAMS, "lc_secrets", "saved", "langsmith"},
    ("openai", "OpenAI"): PARAMS,
    ("openai", "AzureOpenAI"): PARAMS,
}
"""Nulls and empty tables (`NO_NULLS`), and an empty proxy; Azure as langchain-openai's:
its key's own variable, its provider's name, its deployment for a model's name."""


def said_of(llm: Any) -> dict[str, Any]:
    """What a model says of itself, to be traced, cached and saved."""
    return {
        **{name: getattr(llm, name) for name in SAID},
        "saved": dumpd(llm),
        "langsmith": llm._get_ls_params(stop=["x"]),  # noqa: SLF001 - LangChain's hook
    }


@pytest.mark.parametrize("cls", ["OpenAI", "AzureOpenAI"])
@pytest.mark.parametrize("peer", PEERS)
def test_models_say_the_same_of_themselves(
    gateway: FaultyGateway, peer: str, cls: str
) -> None:
    """Traces, caches and saved models know ours as they know the peer's."""
    fields = {**settings(cls, gateway), "temperature": 0.5, "organization": "org"}
    with old_habits():
        theirs = getattr(peer_module(peer), cls)(**fields)
        mine = getattr(ours, cls)(**fields)
        said, my = said_of(theirs), said_of(mine)
        theirs.client._client.close()  # noqa: SLF001 - the SDK's name
    different = {name for name in said if said[name] != my[name]}
    assert different == WANTED_OF_SAID[peer, cls]
    for name in ("_identifying_params", "_invocation_params"):
        meant = {n: v for n, v in said[name].items() if v not in (None, {})}
        assert meant == my[name]


@pytest.mark.parametrize("cls", ["OpenAI", "AzureOpenAI"])
@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize("code", [400, 401, 403, 404, 409, 422, 429, 500, 503])
def test_who_catches_the_peers_error_catches_ours(
    twin: Any, gateway: FaultyGateway, peer: str, cls: str, code: int
) -> None:
    """An `except` clause written for the peer's exception catches ours."""
    module, case = peer_module(peer), Case("plain")
    gateway.always(Status(code))
    with pytest.raises(Exception, match="Error code") as caught:
        run(module, cls, case, gateway, twin)
    with pytest.raises(type(caught.value), match="Error code"):
        run(ours, cls, case, gateway, twin)


@pytest.mark.parametrize("cls", ["BaseOpenAI", "OpenAI", "AzureOpenAI", "OpenAIChat"])
@pytest.mark.parametrize("peer", PEERS)
def test_every_field_of_the_peers_is_here(peer: str, cls: str) -> None:
    """All fields, aliases and public names of the peers' classes exist."""
    module = peer_module(peer)
    if peer == "openai" and cls == "BaseOpenAI":
        module = importlib.import_module("langchain_openai.llms.base")
    if peer == "openai" and cls == "OpenAIChat":
        assert not hasattr(module, cls)  # That package has chat models instead.
        return
    theirs, mine = getattr(module, cls), getattr(ours, cls)
    assert set(theirs.model_fields) <= set(mine.model_fields)
    for name, their in theirs.model_fields.items():
        assert mine.model_fields[name].alias in {their.alias, *NEW_ALIASES}
    with old_habits():
        public = {name for name in dir(theirs) if not name.startswith("_")}
        missing = {name for name in public if not hasattr(mine, name)}
    assert missing == set()


# Names that a peer's `OpenAIChat` lacks, and its other classes have.
NEW_ALIASES = {"model", "organization"}

DEFAULTS_THAT_DIFFER = {
    ("community", "logit_bias"): "an empty table says nothing, and is not sent",
    ("community", "openai_api_version"): "an empty text is no version",
    ("community", "openai_api_type"): "known from the start, as in langchain-openai",
    ("community", "openai_proxy"): "an empty text is no proxy",
}


@pytest.mark.parametrize("cls", ["OpenAI", "AzureOpenAI"])
@pytest.mark.parametrize("peer", PEERS)
def test_the_defaults_are_the_peers(
    gateway: FaultyGateway, peer: str, cls: str
) -> None:
    """A model that was told nothing is set as the peer's is."""
    module = peer_module(peer)
    with old_habits():
        theirs = getattr(module, cls)(**settings(cls, gateway))
        mine = getattr(ours, cls)(**settings(cls, gateway))
        theirs.client._client.close()  # noqa: SLF001 - the SDK's name
    same = set(type(theirs).model_fields) - {"client", "async_client", "metadata"}
    for name in sorted(same):
        their, my = getattr(theirs, name), getattr(mine, name)
        if name == "openai_api_key":
            their = getattr(their, "get_secret_value", lambda t=their: t)()
            my = my.get_secret_value()
        if (peer, name) in DEFAULTS_THAT_DIFFER:
            assert not their or their == my or name == "openai_api_type"
        else:
            assert my == their, name


def default_of(cls: Any, name: str) -> Any:
    """The default of a field that no environment variable sets; `MISSING`."""
    field = cls.model_fields.get(name)
    if field is None:
        return MISSING
    factory = field.default_factory
    if factory is None:
        return field.default
    return factory() if factory in (dict, list) else None


def test_the_table_of_defaults_is_true() -> None:
    """The docs name each default that is set, or that differs, and the peer's."""
    page = Path(__file__).parents[3] / "docs/llms/openai.md"
    table = page.read_text(encoding="utf-8").split("### Defaults")[1].split("\n\n")[2]
    told = {}
    for line in table.splitlines()[2:]:
        name, *cells = (cell.strip(" `") for cell in line.strip("|").split("|"))
        told[name] = [MISSING if c == "—" else ast.literal_eval(c) for c in cells]
    peer = peer_module("community")
    classes = (ours.OpenAI, ours.OpenAIChat, peer.OpenAI, peer.OpenAIChat)
    expected = {}
    names = ours.OpenAI.model_fields.keys() | ours.OpenAIChat.model_fields.keys()
    for name in names - BaseLLM.model_fields.keys():
        values = [default_of(cls, name) for cls in classes]
        known = [value for value in values if value != MISSING]
        if any(known) or any(value != known[0] for value in known):
            expected[name] = values
        if name in ours.OpenAI.model_fields:
            for module in (ours, peer):
                azures = default_of(module.AzureOpenAI, name)
                assert azures == default_of(module.OpenAI, name)
    assert told == expected
