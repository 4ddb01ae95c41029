"""Fields of `GPTRouterEmbeddings`: what is refused, read, written, and hidden."""

from __future__ import annotations

import copy
import json
import pickle
import warnings
from typing import Any

import pytest
from gpt_router.client import GPTRouterClient
from langchain_core._api import LangChainBetaWarning
from langchain_core.load import dumpd, load
from pydantic import ValidationError

from langchain_retryrouter import (
    CircuitBreaker,
    GPTRouterEmbeddings,
    RetryBudget,
    RetryPolicy,
)
from langchain_retryrouter.testing import FaultyGateway
from langchain_retryrouter.testing._gptrouter_api import stub_embedding

from .conftest import ADA, AT_AZURE, KEY, SMALL, Env, NewEmbeddings

# --- construction ---


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("gpt_router_api_key", "sk-secret\n", "strip it"),
        ("endpoint", "v3", "'v1' or 'v2'"),
        ("chunk_size", 0, "greater than or equal to 1"),
        ("chunk_size", 2049, "less than or equal to 2048"),
        ("chunk_size", True, "valid integer"),
        ("chunk_size", 1.5, "valid integer"),
        ("max_concurrency", 0, "greater than or equal to 1"),
        ("max_concurrency", None, "valid integer"),
        ("client", GPTRouterClient("http://127.0.0.1:1", "k"), "must be left out"),
    ],
)
def test_a_bad_value_is_refused_at_construction(
    new_embeddings: NewEmbeddings, field: str, value: Any, told: str
) -> None:
    """A value that no call could use is refused by name, with what to give instead."""
    with pytest.raises(ValidationError) as caught:
        new_embeddings(**{field: value})

    [where] = {error["loc"][0] for error in caught.value.errors()}
    assert where == field
    assert told in str(caught.value)
    assert KEY not in str(caught.value) + repr(caught.value.errors())


def test_different_models_are_refused_unless_wanted(
    new_embeddings: NewEmbeddings,
) -> None:
    """Vectors of two models cannot be compared: mixing them must be allowed."""
    with pytest.raises(
        ValidationError,
        match=r"\('text-embedding-3-small', 'text-embedding-ada-002'\).*several",
    ):
        new_embeddings(models_priority_list=[SMALL, ADA])

    new_embeddings(models_priority_list=[SMALL, ADA], allow_different_models=True)
    new_embeddings(models_priority_list=[SMALL, AT_AZURE])
    # `v2` takes one name: a second model would never be asked.
    with pytest.raises(ValidationError, match="2 are listed: the others would never"):
        new_embeddings(models_priority_list=[SMALL, AT_AZURE], endpoint="v2")


# --- copies ---


@pytest.mark.parametrize(
    "duplicate",
    [
        copy.copy,
        copy.deepcopy,
        GPTRouterEmbeddings.model_copy,
        lambda embeddings: pickle.loads(pickle.dumps(embeddings)),
    ],
    ids=["copy", "deepcopy", "model_copy", "pickle"],
)
def test_a_copy_answers(env: Env, duplicate: Any) -> None:
    """A copy has the key and the fields, and works in another process."""
    embeddings = env.embeddings(
        clock=None, budget=RetryBudget(), breaker=CircuitBreaker(), chunk_size=7
    )
    env.embed(embeddings, "a")

    again = duplicate(embeddings)

    assert again.chunk_size == 7
    assert again.budget is not None
    assert again.breaker is not None
    assert env.embed(again, "a") == stub_embedding("a")
    assert env.gateway.requests[-1].headers["ws-secret"] == KEY


def test_embeddings_can_be_written_and_loaded(
    new_embeddings: NewEmbeddings, gateway: FaultyGateway
) -> None:
    """`langchain_core.load` writes them without their secrets, and loads them again."""
    policy = RetryPolicy(max_retries=1, deadline=9.0)
    embeddings = new_embeddings(
        models_priority_list=[SMALL, ADA],
        allow_different_models=True,
        retry_policy=policy,
        request_timeout=(1, 2),
        chunk_size=7,
        proxy="http://user:password@127.0.0.1:1",
    )

    written = json.dumps(dumpd(embeddings))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LangChainBetaWarning)
        again = load(
            json.loads(written),
            allowed_objects=[GPTRouterEmbeddings],
            valid_namespaces=["langchain_retryrouter"],
            secrets_map={"GPT_ROUTER_API_KEY": "sk-of-the-loader"},
        )

    assert KEY not in written
    assert "password" not in written
    assert (again.retry_policy, again.request_timeout) == (policy, (1.0, 2.0))
    assert (again.models_priority_list, again.chunk_size) == ([SMALL, ADA], 7)
    assert again.embed_query("a") == stub_embedding("a")
    assert gateway.requests[-1].headers["ws-secret"] == "sk-of-the-loader"
