"""`GPTRouterEmbeddings`: vectors from a GPTRouter gateway, with one retry owner."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from gpt_router.models import GPTRouterMetadata
from langchain_core.embeddings import Embeddings
from pydantic import Field, ValidationInfo, field_validator
from tenacity import RetryCallState

from langchain_retryrouter._gptrouter.client import GatewayClient
from langchain_retryrouter._gptrouter.connection import (
    GatewayConnection,
    GPTRouterModel,
)
from langchain_retryrouter._gptrouter.embeddings import (
    PATH,
    PATH_V2,
    Vector,
    chunks_of,
    joined,
    payload_of,
    payload_v2_of,
    read_vectors,
    request_of,
)
from langchain_retryrouter._gptrouter.plan import retry_context, take_metadata
from langchain_retryrouter._retry.engine import acall, call
from langchain_retryrouter._retry.timeouts import agather_bounded
from langchain_retryrouter.errors import RetryRouterError

if TYPE_CHECKING:
    from langchain_retryrouter._retry.engine import Attempt


Endpoint: TypeAlias = Literal["v1", "v2"]

logger = logging.getLogger(__name__)


class _EmbeddingCall:
    """What both twins know of a chunk."""

    def __init__(
        self,
        client: GatewayClient,
        models: Sequence[GPTRouterModel],
        texts: Sequence[str],
        *,
        endpoint: Endpoint,
        metadata: GPTRouterMetadata | None,
        failover: bool,
    ) -> None:
        """Nothing is sent yet.

        Args:
            client: What sends.
            models: The models to ask, the preferred one first.
            texts: What is to be embedded in one request.
            endpoint: Which of the gateway's two endpoints is asked.
            metadata: What the gateway is told for its own records.
            failover: Whether the next attempt puts a model that failed last.
        """
        self._client = client
        self._requests = [
            request_of(model.name, model.provider_name, texts) for model in models
        ]
        self._count = len(texts)
        self._is_v2 = endpoint == "v2"
        self._metadata = metadata
        self._failover = failover

    def route(self) -> str:
        """Whom the next attempt asks first; in v2 only the gateway knows its provider.

        With its provider, since a list that fails over names one model several times.
        """
        first = self._requests[0]
        if self._is_v2:
            return first.model_name
        return f"{first.model_provider}/{first.model_name}"

    def on_failure(self, _error: RetryRouterError) -> None:
        """Prepare the next attempt, knowing how the last one failed."""
        if self._failover:
            failed, *others = self._requests
            self._requests = [*others, failed]

    def should_failover(self, _error: RetryRouterError) -> bool:
        """Never: what is final here was said by the gateway, not by one of the models.

        A model's own trouble is told in streams only, and vectors are not streamed.
        """
        return False

    def _asked(self) -> tuple[str, dict[str, Any]]:
        """Where the next attempt goes, and with what."""
        if self._is_v2:
            path, payload = PATH_V2, payload_v2_of(self._requests[0])
        else:
            path, payload = PATH, payload_of(self._requests)
        return path, self._client.add_metadata_info(payload, self._metadata)

    def _read(self, data: Mapping[str, Any] | None) -> list[Vector]:
        return read_vectors(data, self._count)

    def _log(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        status = getattr(error, "status_code", None)
        # Not what was said: what a server says may hold anything.
        told = type(error).__name__ + (f", {status}" if status is not None else "")
        logger.warning(
            "attempt %d to embed %d text(s) at %s failed (%s),"
            " another follows in %.2f s",
            state.attempt_number,
            self._count,
            getattr(error, "route", None),
            told,
            state.upcoming_sleep,
        )


class GatewayCall(_EmbeddingCall):
    """One chunk over a sync client."""

    def send(self, attempt: Attempt) -> list[Vector]:
        """One attempt's vectors."""
        path, payload = self._asked()
        return self._read(self._client.post(path, payload, attempt.timeout))

    def notify(self, state: RetryCallState) -> None:
        """Tell the log of a retry, before its wait."""
        self._log(state)


class AsyncGatewayCall(_EmbeddingCall):
    """One chunk over an async client."""

    async def send(self, _attempt: Attempt) -> list[Vector]:
        """One attempt's vectors."""
        path, payload = self._asked()
        return self._read(await self._client.apost(path, payload))

    async def notify(self, state: RetryCallState) -> None:
        """Tell the log of a retry, before its wait."""
        self._log(state)


# OpenAI's limit, and that of the gateway's embeddings providers with it.
_MAX_TEXTS = 2048


class GPTRouterEmbeddings(GatewayConnection, Embeddings):
    """Embeddings over a GPTRouter gateway, retried until they are whole or cannot be.

    The key and the address come from the arguments or from `GPT_ROUTER_API_KEY` and
    `GPT_ROUTER_API_BASE`; connections, policy, budget, breaker and errors are those of
    `GPTRouter`. For each text there is one vector, in order, or an error: an answer
    with a vector too few, of another length, or with a `NaN` in it is not believed.

    Example:
        ```python
        from langchain_retryrouter import GPTRouterEmbeddings, GPTRouterModel

        embeddings = GPTRouterEmbeddings(
            models_priority_list=[
                GPTRouterModel(
                    name="text-embedding-3-small",
                    provider_name="openai_embeddings",
                ),
            ]
        )
        vectors = embeddings.embed_documents(["a text", "another one"])
        ```

    The policy holds for each request, which has up to `chunk_size` texts. A retry is
    logged as a warning by `langchain_retryrouter.embeddings`, since LangChain has no
    callbacks for embeddings.
    """

    endpoint: Endpoint = Field(default="v1", validate_default=True)
    """`v1` sends the list of models; `v2` one model's name, its provider left to the
    gateway, which lets several take turns."""

    allow_different_models: bool = Field(default=False, validate_default=True)
    """Whether the list may name different models, whose vectors cannot be compared."""

    chunk_size: int = Field(default=100, ge=1, le=_MAX_TEXTS, strict=True)
    """Texts of a request at the most; fewer where they would not fit into 1 MiB, which
    is the gateway's limit, and in which `v1` repeats them for each model."""

    max_concurrency: int = Field(default=4, ge=1, strict=True)
    """Requests of one `aembed_documents` that may be under way together."""

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
    def _check_endpoint(cls, value: Endpoint, info: ValidationInfo) -> Endpoint:
        models = info.data.get("models_priority_list", [])
        if value == "v2" and len(models) > 1:
            msg = (
                f"endpoint 'v2' asks one model, and {len(models)} are listed: the"
                " others would never be asked. List one, or use 'v1'."
            )
            raise ValueError(msg)
        return value

    @field_validator("allow_different_models")
    @classmethod
    def _check_models(cls, value: bool, info: ValidationInfo) -> bool:  # noqa: FBT001 - pydantic's call
        names = {m.name: None for m in info.data.get("models_priority_list", [])}
        if len(names) > 1 and not value:
            told = ", ".join(map(repr, names))
            msg = (
                f"models_priority_list names different models ({told}): any of them may"
                " answer, and their vectors cannot be compared. List one model at"
                " several providers, or set allow_different_models=True."
            )
            raise ValueError(msg)
        return value

    # --- what is asked ---

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """A vector for each text, in the order of the texts.

        Args:
            texts: None of them empty, since providers refuse those; may be no text at
                all, and then nothing is sent.

        Raises:
            RetryRouterError: The last attempt's own error; no vector is lost silently.
            TypeError: If `texts` is one string, or holds something else.
            ValueError: If a text is empty.
        """
        chunks = self._chunks(texts)
        return joined([self._embed(chunk) for chunk in chunks])

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """Async twin of `embed_documents`, `max_concurrency` requests together."""
        chunks = self._chunks(texts)
        return joined(await agather_bounded(self._aembed, chunks, self.max_concurrency))

    def embed_query(self, text: str) -> list[float]:
        """The vector of one text; see `embed_documents`."""
        [vector] = self.embed_documents([text])
        return vector

    async def aembed_query(self, text: str) -> list[float]:
        """Async twin of `embed_query`."""
        [vector] = await self.aembed_documents([text])
        return vector

    def _embed(self, texts: list[str]) -> list[Vector]:
        exchange = GatewayCall(**self._inquiry(texts))
        return call(retry_context(self, exchange), exchange.send, exchange.notify)

    async def _aembed(self, texts: list[str]) -> list[Vector]:
        exchange = AsyncGatewayCall(**self._inquiry(texts))
        return await acall(
            retry_context(self, exchange), exchange.send, exchange.notify
        )

    def _inquiry(self, texts: list[str]) -> dict[str, Any]:
        return {
            "client": self.client,
            "models": self.models_priority_list,
            "texts": texts,
            "endpoint": self.endpoint,
            "metadata": take_metadata(self, {}),
            "failover": self.failover,
        }

    def _chunks(self, texts: Sequence[str]) -> list[list[str]]:
        # All are checked before the first is sent.
        checked = list(_checked(texts))
        return chunks_of(checked, self.chunk_size, len(self.models_priority_list))


def _checked(texts: Sequence[str]) -> Iterator[str]:
    if isinstance(texts, str | bytes):
        msg = f"texts must be a list of strings, not one {type(texts).__name__}"
        raise TypeError(msg)
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            msg = f"text {position} must be a string, not {type(text).__name__}"
            raise TypeError(msg)
        if not text:
            msg = f"text {position} is empty: providers refuse it, so leave it out"
            raise ValueError(msg)
        yield text
