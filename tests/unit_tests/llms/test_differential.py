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
from langchain_core.language_models import BaseLLM
from langchain_core.load import dumpd
from langchain_core.outputs import LLMResult

from langchain_retryrouter.llms import openai as ours
from langchain_retryrouter.testing import FaultyGateway
from tests.unit_tests.conftest import Twin

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
    prompts: tuple[str, ...] = ("hi",)
    options: Mapping[str, Any] = field(default_factory=dict)


CASES = [
    Case("plain"),
    Case("several prompts", prompts=("a", "b", "c")),
    Case("batches", prompts=("a", "b", "c"), fields={"batch_size": 2}),
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
    Case("stream", method="stream"),
    Case("stream with stop", method="stream", options={"stop": ["stub"]}),
    Case("streaming inside", fields={"streaming": True}),
]
ONLY_LANGCHAIN_OPENAI = [
    Case("logprobs", fields={"logprobs": 2}),
    Case("logprobs streamed", "stream", {"logprobs": 2}),
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

# Of no meaning, or by what happens to be installed.
IGNORED_HEADERS = {"host", "content-length", "accept-encoding"}


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


async def acall(llm: Any, case: Case) -> Any:
    """The result of an async call; the model's client is closed in its event loop."""
    try:
        if case.method == "stream":
            chunks = llm.astream(case.prompts[0], **case.options)
            return [chunk async for chunk in chunks]
        return await llm.agenerate([*case.prompts], **case.options)
    finally:
        await llm.async_client._client.close()  # noqa: SLF001 - the SDK's name


def run(llm: Any, case: Case, gateway: FaultyGateway, twin: Twin) -> dict[Any, Any]:
    """What one call sends and returns, by its name; of a request, after its number."""
    gateway.reset_log()
    llm.callbacks = [recorder := Recorder()]
    if twin.is_async:
        result = asyncio.run(acall(llm, case))
    else:
        ask = [*case.prompts] if case.method == "generate" else case.prompts[0]
        result = getattr(twin, case.method)(llm, ask, **case.options)
        getattr(llm, "close", llm.client._client.close)()  # noqa: SLF001
    seen: dict[Any, Any] = {"number of requests": len(gateway.requests)}
    for number, request in enumerate(gateway.requests):
        headers = {n: v for n, v in request.headers.items() if n not in IGNORED_HEADERS}
        where = {"method": request.method, "path": request.path, "query": request.query}
        parts = {"body ": request.payload, "header ": headers, "": where}
        for part, values in parts.items():
            seen |= {(number, f"{part}{name}"): values[name] for name in values}
    if isinstance(result, LLMResult):
        output = result.llm_output or {}
        seen |= {f"result llm_output.{name}": output[name] for name in output}
        result = result.generations
    else:
        info = recorder.results[-1].generations[0][0].generation_info or {}
        seen |= {f"callback info.{name}": info[name] for name in info}
    return {**seen, "result": result}


MISSING = "(missing)"


@pytest.mark.parametrize("cls", ["OpenAI", "AzureOpenAI"])
@pytest.mark.parametrize("peer", PEERS)
def test_only_what_is_wanted_differs(
    twin: Twin, gateway: FaultyGateway, peer: str, cls: str
) -> None:
    """Same calls, same requests, same results; but for the differences in the list."""
    classes = [getattr(module, cls) for module in (peer_module(peer), ours)]
    cases = CASES if peer == "community" else CASES + ONLY_LANGCHAIN_OPENAI
    wanted = WANTED[peer, cls] | (WANTED_ASYNC if twin.is_async else {})
    found: dict[str, str] = {}
    for case in cases:
        fields = {**settings(cls, gateway), **case.fields}
        with old_habits():
            their, my = (run(cls(**fields), case, gateway, twin) for cls in classes)
        for key in their.keys() | my.keys():
            values = their.get(key, MISSING), my.get(key, MISSING)
            if values[0] != values[1]:
                name = key if isinstance(key, str) else key[1]
                found.setdefault(name, f"{case.name}: theirs, ours {values!r}")
    assert {name: found[name] for name in sorted(found.keys() - wanted.keys())} == {}
    assert sorted(wanted.keys() - found.keys()) == []


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
        said, my = said_of(theirs), said_of(getattr(ours, cls)(**fields))
        theirs.client._client.close()  # noqa: SLF001 - the SDK's name
    different = {name for name in said if said[name] != my[name]}
    assert different == WANTED_OF_SAID[peer, cls]
    for name in PARAMS:
        meant = {n: v for n, v in said[name].items() if v not in (None, {})}
        assert meant == my[name]


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
