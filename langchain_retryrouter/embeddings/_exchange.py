"""One chunk's requests to a gateway: what an attempt sends, how its answer is read.

The gateway asks its second model only when its own health table says that the first is
sick, never when the first one fails. So whoever failed is put last for the next
attempt. LangChain has no callbacks for embeddings: retries are logged.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from gpt_router.models import GPTRouterMetadata
from tenacity import RetryCallState

from langchain_retryrouter._gateway_connection import GPTRouterModel
from langchain_retryrouter._gptrouter.embeddings import (
    PATH,
    PATH_V2,
    Vector,
    payload_of,
    payload_v2_of,
    read_vectors,
    request_of,
)
from langchain_retryrouter._gptrouter.transport import GatewayClient
from langchain_retryrouter.errors import RetryRouterError

if TYPE_CHECKING:
    from langchain_retryrouter._drive import Attempt

Endpoint: TypeAlias = Literal["v1", "v2"]

logger = logging.getLogger(__name__)


class _Inquiry:
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

    def learn(self, _error: RetryRouterError) -> None:
        """Prepare the next attempt, knowing how the last one failed."""
        if self._failover:
            failed, *others = self._requests
            self._requests = [*others, failed]

    def leaves_behind(self, _error: RetryRouterError) -> bool:
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


class Exchange(_Inquiry):
    """One chunk over a sync client."""

    def send(self, attempt: Attempt) -> list[Vector]:
        """One attempt's vectors."""
        path, payload = self._asked()
        return self._read(self._client.post(path, payload, attempt.timeout))

    def notify(self, state: RetryCallState) -> None:
        """Tell the log of a retry, before its wait."""
        self._log(state)


class AsyncExchange(_Inquiry):
    """One chunk over an async client."""

    async def send(self, _attempt: Attempt) -> list[Vector]:
        """One attempt's vectors."""
        path, payload = self._asked()
        return self._read(await self._client.apost(path, payload))

    async def notify(self, state: RetryCallState) -> None:
        """Tell the log of a retry, before its wait."""
        self._log(state)
