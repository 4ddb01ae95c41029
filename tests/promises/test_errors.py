"""Whatever goes wrong between a question and its answer has one right name."""

from __future__ import annotations

import logging
import pickle
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import openai
import pytest
from langchain_community.chat_models.gpt_router import GPTRouter as CommunityGPTRouter
from langchain_community.chat_models.gpt_router import (
    GPTRouterModel as CommunityModel,
)
from langchain_core.exceptions import ModelError
from pydantic import SecretStr

from langchain_retryrouter import RetryRouterError
from langchain_retryrouter.testing import FaultyGateway
from tests.promises.askers import ASKERS, WAYS, Asker, Models, Way, chat_openai
from tests.promises.askers import models_of as asked
from tests.promises.breakages import BREAKAGES, NOWHERE, NoServer, address_of
from tests.promises.evidence import Evidence, Length, Promise
from tests.promises.faults import (
    CUT_OFF,
    KEY,
    Family,
    Fault,
    Meaning,
    answered,
)

PROMISE = Promise(
    title="Errors",
    number="≥ 150 rows at each gateway; 100 % of the right class; final ones sent once",
    why=(
        "Statuses, bodies and transports, sync and async, streamed and not, through"
        " GPTRouter, OpenAI, OpenAIChat, AzureOpenAI and a RetryRouter: what comes"
        " out is LangChain's `ModelError` of that meaning and the SDK's own class, with"
        " its facts, says whether to try again, and does not show the key. The server"
        " counts the requests."
    ),
)
FAMILIES: Final[tuple[Family, ...]] = ("openai", "gptrouter")
ROWS: Final = "rows of status, body and transport, at the gateway with fewer"
NAMED: Final = "of 100 failures, raised as a ModelError"
RIGHT: Final = "of 100 failures, right in class, SDK's class, facts and is_retryable"
AGAIN: Final = "final failures that were sent more than once"
LEAKS: Final = "failures whose error, pickle or log shows the key"
CALLS: Final = "failing calls made"

_FEW: Final = 29  # Of the plain statuses, so many apart are asked in the short form.


def rows_of(family: Family) -> list[Fault]:
    """All rows of one gateway."""
    return [*answered(family), *BREAKAGES, *NOWHERE]


def chosen(family: Family, length: Length) -> list[Fault]:
    """The rows of this run: all, or, of the plain statuses, only some."""
    rows = rows_of(family)
    if length.is_long:
        return rows
    return [row for at, row in enumerate(rows) if not row.is_plain or at % _FEW == 0]


class KeyWatch(logging.Handler):
    """Listens to everything that anybody logs, and remembers what shows the key."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if KEY in (said := self.format(record)):
            self.seen.append(said)


@pytest.fixture
def watch() -> Iterator[KeyWatch]:
    """The watch over all logs, down to DEBUG."""
    root, handler = logging.getLogger(), KeyWatch()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.setLevel(level)
    root.removeHandler(handler)


@pytest.fixture(scope="module", autouse=True)
def whole_http_library() -> None:
    """It reads a part of itself from disk when first used: not in a coroutine."""
    openai.DefaultHttpxClient().close()


@dataclass(frozen=True)
class Call:
    """One row, asked of one model in one way."""

    asker: Asker
    fault: Fault
    way: Way
    retries: int

    def expected(self) -> list[Meaning]:
        """What a caller may be told."""
        told = [self.fault.meaning]
        if self.fault.or_else is not None:
            told.append(self.fault.or_else)
        if self.is_unseen:
            told.append(CUT_OFF)
        return told

    @property
    def is_unseen(self) -> bool:
        """Whether ChatOpenAI's stream skips a document: all there is to see is no end.

        What the document says, such as that the money is out, nobody can know then.
        """
        is_stream = self.asker.is_router and self.way.is_stream
        return is_stream and self.fault.may_be_read

    def faults_found(self, error: Exception | None, sent: int) -> list[str]:
        """What is wrong with the error, in words."""
        if not isinstance(error, RetryRouterError):
            return [f"raised {error!r}"]
        meanings = [one for one in self.expected() if type(error).kind is one.ours.kind]
        if not meanings:
            return [f"is a {type(error).__name__}: {error}"]
        [meaning] = meanings
        return [*self._of_class(error, meaning), *self._of_facts(error, meaning, sent)]

    def _of_class(self, error: RetryRouterError, meaning: Meaning) -> Iterator[str]:
        for cls in (meaning.ours, meaning.langchain, ModelError):
            if not isinstance(error, cls):
                yield f"is no {cls.__name__}"
        sdk = self.asker.sdk(error.status_code)
        if sdk is not None and not isinstance(error, sdk):
            yield f"{type(error).__name__} is not caught by {sdk.__name__}"

    def _of_facts(
        self, error: RetryRouterError, meaning: Meaning, sent: int
    ) -> Iterator[str]:
        for name, value in self.fault.facts.items():
            if getattr(error, name) != value:
                yield f"has {name}={getattr(error, name)!r}, not {value!r}"
        # Whoever has repeated it, or will not, tells others not to.
        may_pass = meaning.is_repeated and not self.asker.owns(meaning, self.retries)
        if error.is_retryable is not may_pass:
            yield f"has is_retryable={error.is_retryable}"
        attempts = self.asker.attempts(self.fault, self.retries)
        if meaning is self.fault.meaning and error.attempts != attempts:
            yield f"took {error.attempts} attempts, not {attempts}"
        if sent > error.attempts:
            yield f"sent {sent} requests in {error.attempts} attempts"

    def __str__(self) -> str:
        """What it is called in a failure."""
        return f"{self.asker.name}, {self.way}, {self.retries} retries, {self.fault}"


def shows_the_key(error: Exception) -> bool:
    """Whether anything that an error says, or takes along, has the key in it."""
    shown = [*traceback.format_exception(error), repr(error), repr(error.args)]
    seen: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in seen:
        seen.append(step)
        shown += [str(step), repr(step), *getattr(step, "__notes__", ())]
        shown.append(repr(getattr(step, "body", "")))
        step = step.__cause__ or step.__context__
    return any(KEY in said for said in shown) or KEY.encode() in pickle.dumps(error)


def calls(asker: Asker, length: Length) -> Iterator[Call]:
    """Each row in one way, the ways by turns; in the long form with 0 and 1 retries."""
    place = ASKERS.index(asker)
    family = [one for one in ASKERS if one.family == asker.family]
    for at, fault in enumerate(chosen(asker.family, length)):
        if not length.is_long and family[at % len(family)] is not asker:
            continue
        fitting = [way for way in WAYS if way.fits(fault)]
        way = fitting[(at // len(family) + place) % len(fitting)]
        for retries in (1, 0) if length.is_long or at % 5 == 0 else (1,):
            yield Call(asker, fault, way, retries)


def made(models: Models, call: Call, gateway: FaultyGateway) -> tuple[Any, int]:
    """The error of a call, and the requests that the server has seen of it."""
    gateway.reset_log()
    step = call.fault.step
    if isinstance(step, NoServer):
        with address_of(step.where, gateway) as address:
            return models.error(call.way, call.fault, address, call.retries), 0
    gateway.always(step)
    error = models.error(call.way, call.fault, gateway.url, call.retries)
    if call.fault.timeout is not None:
        # Who has lost patience may be gone before a busy server has read the request.
        attempts = getattr(error, "attempts", 0)
        gateway.wait_for(lambda gateway: len(gateway.requests) >= attempts)
    return error, len(gateway.requests)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("asker", ASKERS, ids=lambda asker: asker.name)
def test_every_failure_has_its_error(
    asker: Asker, evidence: Evidence, length: Length, watch: KeyWatch
) -> None:
    """Each row has its class, its facts and its number of requests, and no key."""
    wrong: list[str] = []
    resent = leaks = total = 0
    with FaultyGateway(gptrouter=asker.edition) as gateway, asked(asker) as models:
        for call in calls(asker, length):
            error, sent = made(models, call, gateway)
            found = call.faults_found(error, sent)
            total += 1
            if sent > 1 and not (call.fault.may_pass or call.is_unseen):
                resent += 1
                found.append(f"sent {sent} times")
            if error is not None and shows_the_key(error):
                leaks += 1
                found.append("shows the key")
            wrong += [f"{call}: {one}" for one in found]
    assert not wrong, "\n".join(wrong)
    assert watch.seen == []
    evidence.exactly(100, 100 * (total - len(wrong)) / total, RIGHT)
    evidence.exactly(100, 100, NAMED)
    evidence.exactly(0, resent, AGAIN)
    evidence.exactly(0, leaks + len(watch.seen), LEAKS)
    evidence.counted(total, CALLS)


def test_there_are_enough_rows(evidence: Evidence, length: Length) -> None:
    """Each row is one of its own, and each gateway has enough of them in each run."""
    names = {
        family: [row.name for row in chosen(family, length)] for family in FAMILIES
    }
    for of_family in names.values():
        assert len(set(of_family)) == len(of_family)
    evidence.at_least(150, min(map(len, names.values())), ROWS)


# --- the peers ---


def _community(address: str, retries: int, patience: float) -> CommunityGPTRouter:
    del patience
    return CommunityGPTRouter(
        models_priority_list=[CommunityModel(name="gpt-4", provider_name="openai")],
        gpt_router_api_base=address,
        gpt_router_api_key=SecretStr(KEY),
        max_retries=retries + 1,  # There it is the number of attempts.
    )


PEERS: Final = (
    Asker("ChatOpenAI", "openai", chat_openai, lambda _: None),
    Asker("community GPTRouter", "gptrouter", _community, lambda _: None),
)
SYNC: Final = WAYS[0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_what_the_peers_raise(peer: Asker, evidence: Evidence, length: Length) -> None:
    """How many of the sync rows a peer names, and which final ones it sends again."""
    if not length.is_long:
        return
    # They wait for real: of the plain statuses some will do.
    rows = [row for row in chosen(peer.family, Length(is_long=False)) if row.may_pass]
    final = [
        row for row in chosen(peer.family, Length(is_long=False)) if not row.may_pass
    ]
    named = again = 0
    with FaultyGateway() as gateway, asked(peer) as models:
        for fault in (*rows, *final):
            if SYNC.fits(fault) and fault.timeout is None:
                error, _ = made(models, Call(peer, fault, SYNC, 0), gateway)
                named += isinstance(error, ModelError)
        for fault in final:
            if SYNC.fits(fault):
                _, sent = made(models, Call(peer, fault, SYNC, 1), gateway)
                again += sent > 1
    count = sum(SYNC.fits(row) and row.timeout is None for row in (*rows, *final))
    evidence.peer(peer.name, round(100 * named / count, 1), NAMED)
    evidence.peer(peer.name, again, AGAIN)
