"""The hosted GPTRouter's embeddings, seen from the server: texts in, vectors out.

Pure. The public server has none; written after what the `gptrouter` package sends and
reads. What is wrong with the shape of a request is the opaque 500 of all its endpoints.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .steps import Status, Step

if TYPE_CHECKING:
    from .recorded_request import RecordedRequest

_DIMENSIONS = 8
_BYTES_EACH = 4
_HALF = 2 ** (8 * _BYTES_EACH - 1)


def stub_embedding(text: str) -> list[float]:
    """The vector that a hosted `FaultyGateway` has for `text`: 8 numbers from -1 to 1.

    The same text has always the same vector, and another text another one.
    """
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    numbers = [
        int.from_bytes(digest[at : at + _BYTES_EACH])
        for at in range(0, _DIMENSIONS * _BYTES_EACH, _BYTES_EACH)
    ]
    return [number / _HALF - 1 for number in numbers]


def vectors(request: RecordedRequest) -> dict[str, Any]:
    """The body of the healthy answer: a vector for each text."""
    texts = request.parameters["input"]
    return {"choices": [{"embedding": stub_embedding(text)} for text in texts]}


def shape_refusal(request: RecordedRequest) -> Step | None:
    """How a request of the wrong shape is turned down; None if it is sound."""
    is_sound = _is_sound_v2 if request.endpoint == "embeddings-v2" else _is_sound
    return None if is_sound(request.payload) else Status(500)


def _is_sound(payload: Mapping[str, Any]) -> bool:
    entries = payload.get("data")
    return isinstance(entries, list) and bool(entries) and all(map(_is_entry, entries))


def _is_sound_v2(payload: Mapping[str, Any]) -> bool:
    return _has_texts(payload) and _is_text(payload.get("modelName"))


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("order"), int)
        and _is_text(entry.get("modelName"))
        and _is_text(entry.get("providerName"))
        and _has_texts(entry.get("promptParams"))
    )


def _has_texts(parameters: Any) -> bool:
    texts = parameters.get("input") if isinstance(parameters, Mapping) else None
    # As at OpenAI, an empty text is no text.
    return isinstance(texts, list) and bool(texts) and all(map(_is_text, texts))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)
