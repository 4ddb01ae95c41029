"""A million odd answers, and nothing leaves the readers but an answer or an error."""

from __future__ import annotations

import collections

import openai
import pytest

from langchain_retryrouter.errors import RetryRouterError
from tests.promises import readers
from tests.promises.corpus import CORPUS
from tests.promises.evidence import Evidence, Length, Promise
from tests.promises.mutations import mutated

PROMISE = Promise(
    title="Fuzz",
    number="0 crashes outside the error tree in 10⁶ inputs",
    why=(
        "Whatever a server sends, a caller gets an answer or an error that it can catch"
        " by its class. Recorded answers are mutated (bits, cuts, splices, any JSON"
        " value in the place of any other, nesting, numbers and characters that nobody"
        " can write) and read by every reader there is. What is accepted must be"
        " text, count no tokens below zero, and not depend on how the network cut it."
    ),
)
_SHARES = {
    "sse": 15,
    "gateway_answer": 15,
    "gateway_stream": 10,
    "gateway_vectors": 8,
    "openai_answer": 10,
    "openai_objects": 5,
    "openai_stream": 8,
    "openai_error": 8,
    "router_answer": 4,
    "router_stream": 3,
    "router_error": 4,
    "headers": 10,
}
_ONLY_ERRORS = {"openai_error", "router_error"}
_ONLY_ANSWERS = {"sse", "headers"}


def _crashes(name: str, count: int, outcomes: collections.Counter[str]) -> list[str]:
    """What got through, each with all that it takes to see it again."""
    read, corpus = CORPUS[name]
    crashes: list[str] = []
    for seed in range(count):
        body, rng = mutated(seed, corpus)
        try:
            read(body, rng)
            outcomes["accepted"] += 1
        except RetryRouterError:
            outcomes["refused"] += 1
        except Exception as error:  # noqa: BLE001 - it is what we look for
            crash = f"{name}, seed {seed}: {type(error).__name__}: {error}"
            crashes.append(f"{crash[:300]}\n  input: {body[:2_000]!r}")
    return crashes


# What the SDK's own objects say about odd answers, to whoever writes them out.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
@pytest.mark.timeout(3600)
def test_whatever_comes_is_read_or_refused(evidence: Evidence, length: Length) -> None:
    """No input makes a reader raise what is none of our errors."""
    assert _SHARES.keys() == CORPUS.keys()
    assert sum(_SHARES.values()) == 100
    crashes: list[str] = []
    for name, share in _SHARES.items():
        count = share * length.of(short=20_000, long=1_000_000) // 100
        outcomes: collections.Counter[str] = collections.Counter()
        crashes += _crashes(name, count, outcomes)
        evidence.counted(count, "inputs")
        # A corpus that is only refused, or only accepted, tries nothing out.
        assert name in _ONLY_ERRORS or outcomes["accepted"] > count / 10, outcomes
        assert name in _ONLY_ANSWERS or outcomes["refused"] > count / 10, outcomes
    assert not crashes, "\n".join([f"{len(crashes)} crashes:", *crashes[:5]])
    evidence.exactly(0, len(crashes), "crashes outside the error tree")


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
def test_what_a_peer_does_with_them(evidence: Evidence, length: Length) -> None:
    """The inputs are odd enough: other readers are brought down by them."""
    count = length.of(short=500, long=20_000)
    crashes = {"ours": 0, "ChatOpenAI": 0}
    corpus = CORPUS["router_answer"][1]
    for seed in range(count):
        body, rng = mutated(seed, corpus)
        try:
            readers.chat_openai(body)
        except openai.OpenAIError:
            pass
        except Exception:  # noqa: BLE001 - a ValueError, TypeError, AttributeError, ...
            crashes["ChatOpenAI"] += 1
        try:
            readers.router_answer(body, rng)
        except RetryRouterError:
            pass
        except Exception:  # noqa: BLE001 - as above
            crashes["ours"] += 1
    what = "crashes in 1,000 whole answers of OpenAI's"
    evidence.exactly(0, 1_000 * crashes["ours"] / count, what)
    evidence.peer("ChatOpenAI", 1_000 * crashes["ChatOpenAI"] / count, what)
    assert crashes["ChatOpenAI"] > count / 20
