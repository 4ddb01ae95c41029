"""What is asked of `/v1/chat/completions` by an LLM: one prompt a request, no tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from langchain_core.messages import BaseMessage, convert_to_openai_messages
from pydantic import Field

from langchain_retryrouter._openai import wire
from langchain_retryrouter.llms._connection import OpenAIConnection, add_stop

_PARAMETERS: Final = (
    "temperature",
    "max_tokens",
    "top_p",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "seed",
    "logprobs",
    "top_logprobs",
    "extra_body",
)


class ChatModel(OpenAIConnection):
    """The fields and the requests of a model of `/v1/chat/completions`, as an LLM."""

    model_name: str = Field(default="gpt-3.5-turbo", alias="model")
    """Name of the model."""
    max_retries: int = 6
    """Further attempts after the first. When given, it wins over the policy's."""
    prefix_messages: list[Any] = Field(default_factory=list)
    """Messages that stand before each prompt, as dicts or LangChain's."""
    temperature: float | None = None
    """What sampling temperature to use; None for the provider's own."""
    max_tokens: int | None = None
    """Tokens of an answer at the most; -1 or None for no limit but the provider's."""
    top_p: float | None = None
    """Total probability mass of tokens to consider at each step."""
    frequency_penalty: float | None = None
    """Penalizes repeated tokens according to frequency."""
    presence_penalty: float | None = None
    """Penalizes repeated tokens."""
    n: int = 1
    """Answers for each prompt."""
    logit_bias: dict[str, float] | None = None
    """Changes how likely each token is."""
    seed: int | None = None
    """Makes the sampling as repeatable as the provider can."""
    logprobs: bool | None = None
    """Whether to report the probability of each token."""
    top_logprobs: int | None = None
    """How many likely tokens to report at each step; needs `logprobs`."""

    @property
    def _llm_type(self) -> str:
        return "openai-chat"

    @property
    def _resource_path(self) -> str:
        return "chat.completions"

    @property
    def _at_once(self) -> int:
        return self.batch_size

    def _check_numbers(self) -> None:
        super()._check_numbers()
        wire.refuse_several({"n": self.n}, streaming=self.streaming)

    @property
    def _default_params(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in _PARAMETERS}
        named["n"] = self.n if self.n > 1 else None
        given = {name: value for name, value in named.items() if value is not None}
        return {**given, **self.model_kwargs}

    def _requests(
        self, prompts: list[str], stop: list[str] | None, options: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        params = {**self._invocation_params, **options}
        add_stop(params, stop)
        if params.get("max_tokens") == -1:
            del params[
                "max_tokens"
            ]  # This endpoint has no limit unless it is told one.
        prefix = [_plain(message) for message in self.prefix_messages]
        asked = [{"role": "user", "content": prompt} for prompt in prompts]
        return [{"messages": [*prefix, message], **params} for message in asked]


def _plain(message: Any) -> Any:
    is_langchain = isinstance(message, BaseMessage)
    return convert_to_openai_messages(message) if is_langchain else message
