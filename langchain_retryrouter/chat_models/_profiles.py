"""What is known of the models behind a gateway, as LangChain's `profile` has it.

The numbers are those of models.dev, which LangChain's own integrations go by too. What
depends on the gateway rather than on the model, such as whether it hands on a JSON
schema, is left open.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from langchain_core.language_models import ModelProfile


class _Known(NamedTuple):
    """Tokens that go in and come out at the most; whether it sees, and reasons."""

    max_input_tokens: int
    max_output_tokens: int
    image_inputs: bool = True
    reasoning_output: bool = False


_GPT_4O: Final = _Known(128_000, 16_384)
_GPT_4_1: Final = _Known(1_047_576, 32_768)
_GPT_5: Final = _Known(272_000, 128_000, reasoning_output=True)
_GPT_6: Final = _Known(1_050_000, 128_000, reasoning_output=True)
_CLAUDE_4: Final = _Known(200_000, 64_000, reasoning_output=True)
_CLAUDE_OPUS_4: Final = _Known(200_000, 32_000, reasoning_output=True)

_KNOWN: Final = {
    "gpt-4": _Known(8_192, 8_192, image_inputs=False),
    "gpt-4-turbo": _Known(128_000, 4_096),
    "gpt-4o": _GPT_4O,
    "gpt-4o-mini": _GPT_4O,
    "gpt-4.1": _GPT_4_1,
    "gpt-4.1-mini": _GPT_4_1,
    "gpt-4.1-nano": _GPT_4_1,
    "gpt-5": _GPT_5,
    "gpt-5-mini": _GPT_5,
    "gpt-5-nano": _GPT_5,
    "gpt-6-luna": _GPT_6,
    "gpt-6-sol": _GPT_6,
    "o3": _Known(200_000, 100_000, reasoning_output=True),
    "o4-mini": _Known(200_000, 100_000, reasoning_output=True),
    "claude-haiku-4-5": _CLAUDE_4,
    "claude-haiku-4-5-20251001": _CLAUDE_4,
    "claude-sonnet-4-0": _CLAUDE_4,
    "claude-opus-4-1": _CLAUDE_OPUS_4,
    "claude-opus-4-1-20250805": _CLAUDE_OPUS_4,
}


def profile_of(names: Sequence[str]) -> ModelProfile | None:
    """What every model of a list can do, since any of them may answer.

    None if one of them is unknown.
    """
    known = [_KNOWN[name] for name in names if name in _KNOWN]
    if not known or len(known) < len(names):
        return None
    return ModelProfile(
        max_input_tokens=min(model.max_input_tokens for model in known),
        max_output_tokens=min(model.max_output_tokens for model in known),
        text_inputs=True,
        image_inputs=all(model.image_inputs for model in known),
        text_outputs=True,
        reasoning_output=all(model.reasoning_output for model in known),
        tool_calling=True,
    )
