"""The gateway's embeddings endpoints, in words: texts to dicts, dicts to vectors.

Pure. The public gateway has no such endpoint, so the source is the `gptrouter` package:
what its client sends is sent, and of what its models read, nothing is believed that can
be checked. A vector that is missing, or stands in another's place, would be stored and
found wrong for years.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

from gpt_router.models import (
    ModelRouterEmbeddingsGenerationParams,
    ModelRouterEmbeddingsGenerationRequest,
)

from langchain_retryrouter._gptrouter.errors import GPT_ROUTER_ERRORS
from langchain_retryrouter.errors import RetryRouterError
from langchain_retryrouter.failures import FailureKind

PATH: Final = "/v1/generate/embeddings"
PATH_V2: Final = "/v1/generate/embeddings-v2"

Vector: TypeAlias = list[float]

_OK = 200
# The gateway takes 1 MiB a body; the rest is for what stands around the texts.
_MAX_TEXT_BYTES = 1024 * 1024 - 64 * 1024


# --- what goes out ------------------------------------------------------------------


def chunks_of(texts: Iterable[str], most: int, copies: int) -> list[list[str]]:
    """The texts in order, cut into chunks of which each fits into one request.

    A body that is too large for the gateway gets the same opaque 500 as an outage, and
    would be repeated in vain. A text that is too large by itself is alone in its chunk.

    Args:
        texts: All of them.
        most: How many texts a chunk may have.
        copies: How often a request repeats them: once for each model.
    """
    chunks: list[list[str]] = []
    room = 0
    for text in texts:
        size = copies * _bytes_of(text)
        if not chunks or len(chunks[-1]) == most or size > room:
            chunks.append([])
            room = _MAX_TEXT_BYTES
        chunks[-1].append(text)
        room -= size
    return chunks


def _bytes_of(text: str) -> int:
    """The length of a text in the body, with its comma."""
    written = json.dumps(text, ensure_ascii=False)
    return len(written.encode("utf-8", "surrogatepass")) + 1


def request_of(
    model_name: str, provider_name: str, texts: Sequence[str]
) -> ModelRouterEmbeddingsGenerationRequest:
    """The SDK's request to one model."""
    return ModelRouterEmbeddingsGenerationRequest(
        model_name=model_name,
        model_provider=provider_name,
        promptParams=ModelRouterEmbeddingsGenerationParams(input=list(texts)),
    )


def payload_of(
    requests: Sequence[ModelRouterEmbeddingsGenerationRequest],
) -> dict[str, Any]:
    """The body for `PATH`: a request for each model, the preferred one first."""
    return {
        "data": [
            {**request.model_dump(), "order": order}  # type: ignore[no-untyped-call]
            for order, request in enumerate(requests, start=1)
        ]
    }


def payload_v2_of(request: ModelRouterEmbeddingsGenerationRequest) -> dict[str, Any]:
    """The body for `PATH_V2`: one model, whose provider is the gateway's choice."""
    return {"input": request.prompt_params.input, "modelName": request.model_name}


# --- what comes back ----------------------------------------------------------------


def read_vectors(data: Mapping[str, Any] | None, count: int) -> list[Vector]:
    """The vectors in a gateway's JSON, in the order of the texts.

    Args:
        data: The answer; None for one without a body.
        count: How many texts were sent.

    Raises:
        GPTRouterMalformedResponseError: Unless there are `count` vectors of one length,
            made of finite numbers.
    """
    if data is None:
        msg = "the gateway took the texts and sent no vectors"
        raise _malformed(msg)
    choices = data.get("choices")
    if not isinstance(choices, list):
        msg = f"the gateway's answer has no vectors: {repr(data)[:200]}"
        raise _malformed(msg)
    if len(choices) != count:
        msg = f"{len(choices)} vectors came back for {count} texts"
        raise _malformed(msg)
    vectors = [
        _vector(choice, position) for position, choice in enumerate(_in_order(choices))
    ]
    if lengths := _different_lengths(vectors):
        msg = f"vectors of different lengths came back: of {lengths} numbers"
        raise _malformed(msg)
    return vectors


def joined(answers: Sequence[list[Vector]]) -> list[Vector]:
    """The vectors of several answers, one answer after the other.

    Raises:
        GPTRouterMalformedResponseError: If they differ in length, since then different
            models have answered. To ask again is no way out, and it says so.
    """
    vectors = [vector for answer in answers for vector in answer]
    if lengths := _different_lengths(vectors):
        msg = (
            f"different models have answered: with vectors of {lengths} numbers, which"
            " cannot be compared"
        )
        error = _malformed(msg)
        error.is_retryable = False
        raise error
    return vectors


def _different_lengths(vectors: Sequence[Vector]) -> str:
    lengths = sorted({len(vector) for vector in vectors})
    return " and ".join(map(str, lengths)) if len(lengths) > 1 else ""


def _in_order(choices: list[Any]) -> list[Any]:
    """The choices by their `index`, where a gateway hands on the provider's."""
    indices = [c.get("index") if isinstance(c, dict) else None for c in choices]
    if all(index is None for index in indices):
        return choices
    known = [index for index in indices if type(index) is int]
    if sorted(known) != list(range(len(choices))):
        msg = f"the vectors cannot be told apart: their indices are {indices[:20]}"
        raise _malformed(msg)
    by_index = dict(zip(known, choices, strict=True))
    return [by_index[index] for index in range(len(choices))]


def _vector(choice: Any, position: int) -> Vector:
    numbers = choice.get("embedding") if isinstance(choice, dict) else None
    vector = _finite(numbers) if isinstance(numbers, list) else []
    if not vector:
        msg = f"vector {position} of the gateway's answer is no list of finite numbers"
        raise _malformed(msg)
    return vector


def _finite(numbers: list[Any]) -> Vector:
    """`numbers` as floats; empty if any is none. Quick: there may be millions."""
    if not set(map(type, numbers)) <= {float, int}:
        return []
    try:
        vector = list(map(float, numbers))
    except OverflowError:  # An integer beyond all floats.
        return []
    return vector if all(map(math.isfinite, vector)) else []


def _malformed(message: str) -> RetryRouterError:
    return GPT_ROUTER_ERRORS[FailureKind.MALFORMED](message, status_code=_OK)
