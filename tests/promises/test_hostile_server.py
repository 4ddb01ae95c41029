"""A server that is out to harm gets an error of ours, and nothing else."""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from langchain_core.exceptions import ModelError
from pydantic import SecretStr

from langchain_retryrouter import GPTRouter, GPTRouterModel, OpenAI
from langchain_retryrouter.testing import FaultyGateway, Status
from tests.promises.evidence import Evidence, Length, Promise
from tests.promises.hostile_answers import hostile_steps
from tests.promises.hostile_floods import FLOODS, cost_of
from tests.promises.hostile_models import ASKED, KEY, Asked
from tests.promises.hostile_server import HostileServer, head, slow
from tests.unit_tests.conftest import Twin

PROMISE = Promise(
    title="A hostile server",
    number="0 foreign exceptions, ≤ 128 MiB whatever is sent, 0 followed redirects",
    why=(
        "A gateway that was taken over, or a typing error in an address, is asked by"
        " all classes of the package: it sends lines without end, packed zeros, numbers"
        " of 100,000 digits, and redirects. Each gets an error of the package's tree,"
        " and the next call of the same model is answered."
    ),
)
ONE_WAY = [Twin(is_async=False), Twin(is_async=True)]
REDIRECTS = (301, 302, 303, 307, 308)
IDS = [asked.id for asked in ASKED]


def outcome(asked: Asked, model: Any, twin: Twin) -> Exception | None:
    """What a call raises, if it raises anything."""
    try:
        asked.ask(model, twin)
    except Exception as error:  # noqa: BLE001 - which it is, is the question
        return error
    return None


@pytest.mark.parametrize("asked", ASKED, ids=IDS)
def test_what_is_wrong_in_any_way_is_an_error_of_ours(
    evidence: Evidence, length: Length, asked: Asked
) -> None:
    """An odd answer is read or refused, and raises nothing that no caller expects."""
    steps = list(hostile_steps(asked))
    if not length.is_long:
        steps = steps[IDS.index(asked.id) :: len(ASKED)]
    foreign: list[str] = []
    unwell: list[str] = []
    with FaultyGateway(gptrouter="hosted") as gateway:
        for (name, step), twin in zip(steps, itertools.cycle(ONE_WAY), strict=False):
            model = asked.model(gateway.url)
            gateway.script(step)
            error = outcome(asked, model, twin)
            if not isinstance(error, ModelError | None):
                foreign.append(f"{name}: {error!r}")
            gateway.script()
            if (error := outcome(asked, model, twin)) is not None:
                unwell.append(f"{name}: {error!r}")
    assert not foreign + unwell
    evidence.counted(len(steps), "odd answers")
    evidence.exactly(0, len(foreign), "exceptions that are no ModelError")
    evidence.exactly(0, len(unwell), "next calls that failed")


def test_what_never_ends_is_left(evidence: Evidence, length: Length) -> None:
    """However much a server sends, an answer is read up to a size and no further."""
    together = [(asked, flood) for asked in ASKED for flood in FLOODS]
    ways = ("sync", "async")
    names = [
        f"{asked.id}/{way}/{flood}"
        for (asked, flood), way in itertools.product(together, ways)
    ]
    if not length.is_long:
        names = [
            "GPTRouter.invoke/sync/a body",
            "GPTRouter.stream/async/a line",
            "OpenAI.invoke/sync/an error page",
            "OpenAIChat.invoke/async/a body",
            "OpenAI.stream/sync/gzip in a stream",
            "GPTRouterEmbeddings.embed/async/a header",
        ]
    cost = cost_of(*names)
    assert not cost["untyped"] + cost["not_well_after"]
    evidence.counted(len(names), "answers without an end")
    evidence.at_most(128, cost["mebibytes"], "MiB taken by an answer without an end")
    evidence.exactly(0, len(cost["untyped"]), "exceptions that are no ModelError")


def test_what_drips_is_left_in_time(evidence: Evidence, length: Length) -> None:
    """A byte now and then, be it of the headers, keeps nobody beyond his deadline."""
    deadline, tried = 0.3, length.of(short=1, long=10)
    drips = [slow(head(), 0.05), slow(head() + b" " * 9000, 0.05)]
    cases = list(itertools.product(ASKED, ONE_WAY, drips))

    with FaultyGateway(gptrouter="hosted") as gateway:

        def lateness(asked: Asked, twin: Twin, drip: Any) -> float:
            with HostileServer(drip, gateway) as server:
                model = asked.model(server.url, deadline=deadline)
                began = time.monotonic()
                assert isinstance(outcome(asked, model, twin), ModelError)
                return time.monotonic() - began - deadline

        with ThreadPoolExecutor(4) as pool:
            late = list(pool.map(lateness, *zip(*cases * tried, strict=True)))
    evidence.at_most(0.5, max(late), "seconds beyond the deadline, byte by byte")


@pytest.mark.parametrize("asked", ASKED, ids=IDS)
def test_nothing_follows_a_redirect(evidence: Evidence, asked: Asked) -> None:
    """Neither key nor prompt goes where a server points, and it is asked once."""
    followed = repeated = cookies = 0
    with FaultyGateway(gptrouter="hosted") as gateway, FaultyGateway() as other:
        model = asked.model(gateway.url, max_retries=2)
        hosts = (other.url, other.url.replace("127.0.0.1", "localhost"), gateway.url)
        for status, host, twin in itertools.product(REDIRECTS, hosts, ONE_WAY):
            gateway.reset_log()
            fields = {"location": f"{host}/v1/completions", "set-cookie": "a=b; path=/"}
            gateway.script(Status(status, fields, b"{}"))
            assert isinstance(outcome(asked, model, twin), ModelError)
            repeated += len(gateway.requests) - 1
            assert outcome(asked, model, twin) is None
            followed += len(other.requests)
            cookies += sum("cookie" in one.headers for one in gateway.requests)
    evidence.exactly(0, followed, "requests that followed a redirect")
    evidence.exactly(0, repeated, "requests after a final error")
    evidence.exactly(0, cookies, "cookies sent back")


def test_a_line_end_makes_no_header(evidence: Evidence, twin: Twin) -> None:
    """A key or metadata with a line end in it adds nothing to the request's headers."""
    odd = f"{KEY}\r\nx-injected: 1"
    models = [GPTRouterModel(name="gpt-4o", provider_name="chat_openai")]
    injected = 0
    with FaultyGateway() as gateway:
        gpt_router: dict[str, Any] = {
            "models_priority_list": models,
            "gpt_router_api_base": gateway.url,
            "max_retries": 0,
        }
        with pytest.raises(ValueError, match="line end"):
            GPTRouter(gpt_router_api_key=SecretStr(odd), **gpt_router)
        told = GPTRouter(
            gpt_router_api_key=SecretStr(KEY), tag=odd, user_id=odd, **gpt_router
        )
        twin.invoke(told, "Hello?")
        with pytest.raises(ValueError, match="line end"):
            OpenAI(base_url=gateway.openai_url, api_key=odd)
        injected = sum("x-injected" in one.headers for one in gateway.requests)
        assert len(gateway.requests) == 1
    evidence.exactly(0, injected, "headers injected")
