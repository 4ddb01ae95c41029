"""How many tokens, prompt and answer together, fit into the context of a model.

Sources: OpenAI's model pages ("context window"), and for gpt-5.6 and later the model
profiles of langchain-openai 1.7, read in November 2026.
"""

from __future__ import annotations

import re
from typing import Final

_SIZES: Final = {
    # Models of /v1/completions.
    "gpt-3.5-turbo-instruct": 4_096,
    "davinci-002": 16_384,
    "babbage-002": 16_384,
    # Models of /v1/chat/completions.
    "gpt-3.5-turbo": 16_385,
    "gpt-3.5-turbo-0125": 16_385,
    "gpt-3.5-turbo-1106": 16_385,
    "gpt-3.5-turbo-16k": 16_385,
    "gpt-3.5-turbo-16k-0613": 16_385,
    "gpt-3.5-turbo-0301": 4_096,
    "gpt-3.5-turbo-0613": 4_096,
    "gpt-4": 8_192,
    "gpt-4-0314": 8_192,
    "gpt-4-0613": 8_192,
    "gpt-4-32k": 32_768,
    "gpt-4-32k-0314": 32_768,
    "gpt-4-32k-0613": 32_768,
    "gpt-4-1106-preview": 128_000,
    "gpt-4-0125-preview": 128_000,
    "gpt-4-turbo": 128_000,
    "gpt-4-turbo-preview": 128_000,
    "gpt-4o": 128_000,
    "gpt-4o-mini": 128_000,
    "gpt-4-vision-preview": 128_000,
    "gpt-4o-audio-preview": 128_000,
    "gpt-4o-mini-audio-preview": 128_000,
    "gpt-4o-search-preview": 128_000,
    "gpt-4o-mini-search-preview": 128_000,
    "chatgpt-4o-latest": 128_000,
    "gpt-4.1": 1_047_576,
    "gpt-4.1-mini": 1_047_576,
    "gpt-4.1-nano": 1_047_576,
    "o1": 200_000,
    "o1-mini": 128_000,
    "o1-preview": 128_000,
    "o1-pro": 200_000,
    "o3": 200_000,
    "o3-mini": 200_000,
    "o3-pro": 200_000,
    "o4-mini": 200_000,
    "codex-mini-latest": 200_000,
    "gpt-5": 400_000,
    "gpt-5-mini": 400_000,
    "gpt-5-nano": 400_000,
    "gpt-5-chat-latest": 128_000,
    "gpt-5-codex": 400_000,
    "gpt-5-pro": 400_000,
    "gpt-5.1": 400_000,
    "gpt-5.1-chat-latest": 128_000,
    "gpt-5.1-codex": 400_000,
    "gpt-5.1-codex-max": 400_000,
    "gpt-5.1-codex-mini": 400_000,
    "gpt-5.2": 400_000,
    "gpt-5.2-chat-latest": 128_000,
    "gpt-5.2-pro": 400_000,
    "gpt-5.3-codex": 400_000,
    "gpt-5.4": 1_050_000,
    "gpt-5.4-mini": 400_000,
    "gpt-5.4-nano": 400_000,
    "gpt-5.4-pro": 1_050_000,
    "gpt-5.5": 1_050_000,
    "gpt-5.5-pro": 1_050_000,
    "gpt-5.6": 1_050_000,
    "gpt-5.6-sol": 1_050_000,
    "gpt-5.6-terra": 1_050_000,
    "gpt-5.6-luna": 1_050_000,
    "gpt-6-astra": 1_050_000,
    "gpt-6-sol": 1_050_000,
    "gpt-6-luna": 1_050_000,
    "gpt-6.1-sol": 1_050_000,
    "gpt-6.1-terra": 1_050_000,
    # Models that are gone from OpenAI, and are still what other servers call theirs.
    "text-davinci-003": 4_097,
    "text-davinci-002": 4_097,
    "text-curie-001": 2_049,
    "text-babbage-001": 2_049,
    "text-ada-001": 2_049,
    "davinci": 2_049,
    "curie": 2_049,
    "babbage": 2_049,
    "ada": 2_049,
    "code-davinci-002": 8_001,
    "code-davinci-001": 8_001,
    "code-cushman-002": 2_048,
    "code-cushman-001": 2_048,
}

_SNAPSHOT = re.compile(r"-\d{4}-\d{2}-\d{2}$")


def context_size(model: str) -> int:
    """The context of `model` in tokens; a snapshot or fine-tune has its base's.

    Raises:
        ValueError: If the model is not known.
    """
    base = _base_of(model)
    size = _SIZES.get(base) or _SIZES.get(_SNAPSHOT.sub("", base))
    if size is None:
        msg = (
            f"Unknown model: {model!r}, so how much fits into its context is not known:"
            " set max_tokens to a number. Known models are: " + ", ".join(_SIZES)
        )
        raise ValueError(msg)
    return size


def _base_of(model: str) -> str:
    """`ada` for `ada:ft-your-org:name`, `davinci-002` for `ft:davinci-002:org::id`."""
    if model.startswith("ft:"):
        return model.split(":")[1]
    return model.partition(":")[0] if "ft-" in model else model
