"""`GPTRouterEmbeddings`: vectors from a GPTRouter gateway, with retries.

The public gateway has no endpoint for embeddings, so the protocol is what the client of
the `gptrouter` package sends. Answers are checked, since a vector that is missing or in
another's place would be stored, and not be noticed for long.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from typing import Any, Final, Literal, TypeAlias

from langchain_core.embeddings import Embeddings
from pydantic import Field, ValidationInfo, field_validator
from tenacity import RetryCallState

from langchain_retryrouter._base import new_call_state
from langchain_retryrouter._gptrouter import connection
from langchain_retryrouter._gptrouter.client import GatewayClient
from langchain_retryrouter._gptrouter.http import Request
from langchain_retryrouter._gptrouter.protocol import (
    GPT_ROUTER_ERRORS,
    build_metadata,
    malformed,
)
from langchain_retryrouter._providers.errors import read_event
from langchain_retryrouter._retry.call_log import Subject
from langchain_retryrouter._retry.engine import Attempt, RetryContext, acall, call
from langchain_retryrouter._retry.timeouts import agather_bounded
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.rate_limits import Size, approximate_tokens

Vector: TypeAlias = list[float]

logger = logging.getLogger(__name__)

_OK: Final = 200
# OpenAI's limit, and so that of the gateway's providers.
_MAX_TEXTS: Final = 2048
# The gateway takes 1 MiB a body; the rest is for what is around the texts.
_MAX_TEXT_BYTES: Final = 1024 * 1024 - 64 * 1024


class GPTRouterEmbeddings(connection.GatewayConnection, Embeddings):
    """Embeddings over a GPTRouter gateway, with retries and failover.

    The key and the address come from the arguments or from `GPT_ROUTER_API_KEY` and
    `GPT_ROUTER_API_BASE`; connections, policy, budget, breaker and errors are those of
    `GPTRouter`. There is one vector for each text, in order, or an error: an answer
    with a vector missing, of another length, or with a `NaN` is rejected.

    Example:
        ```python
        from langchain_retryrouter import GPTRouterEmbeddings, GPTRouterModel

        embeddings = GPTRouterEmbeddings(
            models_priority_list=[
                GPTRouterModel(
                    name="text-embedding-3-small", provider_name="openai_embeddings"
                )
            ]
        )
        vectors = embeddings.embed_documents(["a text", "another one"])
        ```

    The policy applies to each request, which has up to `chunk_size` texts. A retry is
    logged as a warning by `langchain_retryrouter.embeddings`, since LangChain has no
    callbacks for embeddings.
    """

    endpoint: Literal["v1", "v2"] = Field(default="v1", validate_default=True)
    """`v1` sends the list of models; `v2` the name of one model, whose provider the
    gateway chooses."""
    allow_different_models: bool = Field(default=False, validate_default=True)
    """Whether the list may name different models, whose vectors cannot be compared."""
    chunk_size: int = Field(default=100, ge=1, le=_MAX_TEXTS, strict=True)
    """Texts of a request at the most; fewer if they do not fit into the gateway's limit
    of 1 MiB, in which `v1` repeats them for each model."""
    max_concurrency: int = Field(default=4, ge=1, strict=True)
    """Concurrent requests of one `aembed_documents` at the most."""

    @field_validator("client")
    @classmethod
    def _check_client(cls, value: Any) -> Any:
        if value is not None and not isinstance(value, GatewayClient):
            msg = (
                f"client must be left out, not {type(value).__name__}: the SDK's client"
                " has no sync embeddings, and passes on answers with vectors missing"
            )
            raise ValueError(msg)
        return value

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, value: str, info: ValidationInfo) -> str:
        count = len(info.data.get("models_priority_list", []))
        if value == "v2" and count > 1:
            msg = (
                f"endpoint 'v2' asks one model, and {count} are listed: the"
                " others would never be asked. List one, or use 'v1'."
            )
            raise ValueError(msg)
        return value

    @field_validator("allow_different_models")
    @classmethod
    def _check_models(cls, value: Any, info: ValidationInfo) -> Any:
        names = {m.name: None for m in info.data.get("models_priority_list", [])}
        if len(names) > 1 and not value:
            listed = ", ".join(map(repr, names))
            msg = (
                f"models_priority_list names different models ({listed}): any of them"
                " may answer, and their vectors cannot be compared. List one model at"
                " several providers, or set allow_different_models=True."
            )
            raise ValueError(msg)
        return value

    # --- LangChain's interface ---

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each text, in the order of the texts.

        Args:
            texts: The texts, none of them empty, since providers refuse those. Nothing
                is sent for an empty list.

        Raises:
            RetryRouterError: The last attempt's own error.
            TypeError: If `texts` is not a list, or holds something else than strings.
            ValueError: If a text is empty.
        """
        chunks = self._chunks(texts)
        return _join([self._embed(chunk) for chunk in chunks])

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Async variant of `embed_documents`: `max_concurrency` requests at once."""
        chunks = self._chunks(texts)
        return _join(await agather_bounded(self._aembed, chunks, self.max_concurrency))

    def embed_query(self, text: str) -> list[float]:
        """The vector of one text; see `embed_documents`."""
        return self.embed_documents([text])[0]

    async def aembed_query(self, text: str) -> list[float]:
        """Async variant of `embed_query`."""
        return (await self.aembed_documents([text]))[0]

    def _embed(self, texts: list[str]) -> list[Vector]:
        chunk = _ChunkCall(self, texts)
        return call(chunk.context, chunk.send, chunk.log_retry)

    async def _aembed(self, texts: list[str]) -> list[Vector]:
        chunk = _ChunkCall(self, texts)
        return await acall(chunk.context, chunk.asend, chunk.alog_retry)

    def _chunks(self, texts: Sequence[str]) -> list[list[str]]:
        """The texts, all of them checked, in chunks that each fit into one request.

        A body that is too large for the gateway gets the same opaque 500 as an outage,
        and would be retried. A text that is too large by itself is alone in its chunk.
        """
        is_other = isinstance(texts, str | bytes | Mapping | AbstractSet)
        if is_other or not isinstance(texts, Iterable):
            msg = f"texts must be a list of strings, not one {type(texts).__name__}"
            raise TypeError(msg)
        chunks: list[list[str]] = []
        left = 0
        for position, text in enumerate(texts):
            if not isinstance(text, str):
                msg = f"text {position} must be a string, not {type(text).__name__}"
                raise TypeError(msg)
            if not text:
                msg = f"text {position} is empty: providers refuse it, so leave it out"
                raise ValueError(msg)
            written = json.dumps(text, ensure_ascii=False)
            size = len(written.encode("utf-8", "surrogatepass")) + 1
            size *= len(self.models_priority_list)
            if not chunks or len(chunks[-1]) == self.chunk_size or size > left:
                chunks.append([])
                left = _MAX_TEXT_BYTES
            chunks[-1].append(text)
            left -= size
        return chunks


class _ChunkCall:
    """One chunk of texts: the requests of its next attempt, and how they are sent."""

    def __init__(self, embeddings: GPTRouterEmbeddings, texts: Sequence[str]) -> None:
        self._embeddings = embeddings
        self._client: GatewayClient = embeddings.client
        self._models, self._texts = embeddings.models_priority_list, texts
        self._is_v2 = embeddings.endpoint == "v2"
        self._metadata = build_metadata(embeddings, {})
        self.context = RetryContext(
            new_call_state(
                embeddings,
                self.describe,
                lambda _: Size(approximate_tokens(texts), 0),
            ),
            errors=GPT_ROUTER_ERRORS,
            route=self.route,
            on_failure=self.on_failure,
        )

    def describe(self, _position: int) -> Subject:
        """What the next attempt asks, for observers."""
        return Subject("embeddings", "gptrouter", self._models[0].name)

    def route(self) -> str:
        """The model asked first, and its provider: a list may name a model twice."""
        first = self._models[0]
        return first.name if self._is_v2 else f"{first.provider_name}/{first.name}"

    def on_failure(self, _error: RetryRouterError) -> None:
        """Prepare the next attempt: another provider first."""
        if self._embeddings.failover:
            failed, *others = self._models
            self._models = [*others, failed]

    def send(self, attempt: Attempt) -> list[Vector]:
        return self._client.post(self._build_request(attempt), self._read)

    async def asend(self, attempt: Attempt) -> list[Vector]:
        return await self._client.apost(self._build_request(attempt), self._read)

    def _read(self, answer: dict[str, Any]) -> list[Vector]:
        return _read_vectors(answer, len(self._texts))

    def log_retry(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        status, route = (getattr(error, n, None) for n in ("status_code", "route"))
        # Without the message: what a server says may hold anything.
        what = type(error).__name__ + (f", {status}" if status is not None else "")
        logger.warning(
            "attempt %d to embed %d text(s) at %s failed (%s),"
            " another follows in %.2f s",
            state.attempt_number,
            len(self._texts),
            route,
            what,
            state.upcoming_sleep,
        )

    async def alog_retry(self, state: RetryCallState) -> None:
        self.log_retry(state)

    def _build_request(self, attempt: Attempt) -> Request:
        path, payload = "/v1/generate/embeddings", dict[str, Any]()
        if self._is_v2:
            path += "-v2"
            payload = {"input": self._texts, "modelName": self._models[0].name}
        else:
            payload["data"] = [
                {
                    "order": order,
                    "modelName": one.name,
                    "providerName": one.provider_name,
                    # The SDK sends the names twice.
                    "model_name": one.name,
                    "model_provider": one.provider_name,
                    "promptParams": {"input": self._texts},
                    "shouldValidateTokenCount": False,
                }
                for order, one in enumerate(self._models, start=1)
            ]
        payload = self._client.add_metadata_info(payload, self._metadata)
        return self._client.build_request(
            path, payload, attempt.timeout, attempt.read_headers
        )


# --- answers ------------------------------------------------------------------------


def _read_vectors(data: Mapping[str, Any], count: int) -> list[Vector]:
    """The `count` vectors in a gateway's JSON, in the order of the texts, checked."""
    if (report := read_event(data)) is not None:
        raise report.to_error(GPT_ROUTER_ERRORS)
    choices = data.get("choices")
    if not isinstance(choices, list):
        msg = f"the gateway's answer has no vectors: {repr(data)[:200]}"
        raise malformed(msg, _OK)
    if len(choices) != count:
        msg = f"{len(choices)} vectors came back for {count} texts"
        raise malformed(msg, _OK)
    indices = [c.get("index") if isinstance(c, dict) else None for c in choices]
    if any(index is not None for index in indices):
        # Some gateways pass on the provider's index.
        known = [index for index in indices if type(index) is int]
        if sorted(known) != list(range(count)):
            msg = f"the indices of the vectors are not 0 to n-1: {indices[:20]}"
            raise malformed(msg, _OK)
        choices = sorted(choices, key=operator.itemgetter("index"))
    vectors = []
    for position, choice in enumerate(choices):
        numbers = choice.get("embedding") if isinstance(choice, dict) else None
        vector: Vector = []
        if isinstance(numbers, list) and set(map(type, numbers)) <= {float, int}:
            with contextlib.suppress(OverflowError):  # An integer beyond all floats.
                vector = list(map(float, numbers))
        if not vector or not all(map(math.isfinite, vector)):
            msg = f"vector {position} of the answer is not a list of finite numbers"
            raise malformed(msg, _OK)
        vectors.append(vector)
    if lengths := _different_lengths(vectors):
        msg = f"vectors of different lengths came back: of {lengths} numbers"
        raise malformed(msg, _OK)
    return vectors


def _join(answers: Sequence[list[Vector]]) -> list[Vector]:
    """The vectors of several answers, one answer after the other."""
    vectors = [vector for answer in answers for vector in answer]
    if lengths := _different_lengths(vectors):
        msg = (
            f"different models have answered: with vectors of {lengths} numbers, which"
            " cannot be compared"
        )
        error = malformed(msg, _OK)
        error.is_retryable = False  # Another call would have them answer again.
        raise error
    return vectors


def _different_lengths(vectors: Sequence[Vector]) -> str:
    lengths = sorted({len(vector) for vector in vectors})
    return " and ".join(map(str, lengths)) if len(lengths) > 1 else ""
