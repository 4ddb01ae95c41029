"""What is asked of `/v1/completions`: parameters, batches, and room for tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from langchain_retryrouter._openai import wire
from langchain_retryrouter.llms._connection import OpenAIConnection, add_stop
from langchain_retryrouter.llms._context_sizes import context_size

# Chat models by name, fine-tunes of them too: `/v1/completions` serves none of them.
CHAT_MODEL = re.compile(
    r"(ft:)?(gpt-3\.5-turbo|gpt-[4-9]|chatgpt-|o\d)(?!.*-instruct)", re.ASCII
)


class CompletionsModel(OpenAIConnection):
    """The fields and the requests of a model of `/v1/completions`."""

    temperature: float = 0.7
    """What sampling temperature to use."""
    max_tokens: int | None = 256
    """Tokens of an answer at the most; -1 for as many as fit behind the prompt."""
    top_p: float = 1
    """Total probability mass of tokens to consider at each step."""
    frequency_penalty: float = 0
    """Penalizes repeated tokens according to frequency."""
    presence_penalty: float = 0
    """Penalizes repeated tokens."""
    n: int = 1
    """Answers for each prompt."""
    best_of: int = 1
    """Answers to generate, of which the best `n` are returned."""
    logit_bias: dict[str, float] | None = None
    """Changes how likely each token is."""
    seed: int | None = None
    """Makes the sampling as repeatable as the provider can."""
    logprobs: int | None = None
    """How many likely tokens to report at each step, with their probabilities."""

    # Not `lc_secrets` itself: LangChain asks each base class for it; the last wins.
    _secrets: ClassVar[dict[str, str]] = {"openai_api_key": "OPENAI_API_KEY"}

    @classmethod
    def is_lc_serializable(cls) -> bool:
        """LangChain can save it; the key is left out."""
        return True

    @classmethod
    def get_lc_namespace(cls) -> list[str]:
        """LangChain's own name for these classes, as in langchain-community."""
        return ["langchain", "llms", "openai"]

    @property
    def lc_secrets(self) -> dict[str, str]:
        """Which fields are left out when LangChain saves the model."""
        return self._secrets

    @property
    def lc_attributes(self) -> dict[str, Any]:
        """What LangChain saves although it may come from the environment."""
        named = ("openai_api_base", "openai_organization")
        said = {name: getattr(self, name) for name in named if getattr(self, name)}
        return {**super().lc_attributes, **said}

    @property
    def _llm_type(self) -> str:
        return "openai"

    def _check_numbers(self) -> None:
        super()._check_numbers()
        asked = {"n": self.n, "best_of": self.best_of}
        wire.refuse_several(asked, streaming=self.streaming)
        if self.max_tokens is not None and self.max_tokens < -1:
            msg = f"max_tokens must be -1, 0 or more, or None, not {self.max_tokens}"
            raise ValueError(msg)

    @property
    def _default_params(self) -> dict[str, Any]:
        optional = {
            "max_tokens": self.max_tokens,
            "logit_bias": self.logit_bias,
            "seed": self.seed,
            "logprobs": self.logprobs,
            "extra_body": self.extra_body,
            # Azure's gpt-35-turbo does not know it.
            "best_of": self.best_of if self.best_of > 1 else None,
        }
        return {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "n": self.n,
            **{name: value for name, value in optional.items() if value is not None},
            **self.model_kwargs,
        }

    def _requests(
        self, prompts: list[str], stop: list[str] | None, options: Mapping[str, Any]
    ) -> list[dict[str, Any]]:
        params = {**self._invocation_params, **options}
        batches = self.get_sub_prompts(params, prompts, stop)
        return [{"prompt": batch, **params} for batch in batches]

    def get_sub_prompts(
        self, params: dict[str, Any], prompts: list[str], stop: list[str] | None = None
    ) -> list[list[str]]:
        """The prompts of each request; `stop` and `max_tokens` in `params` are settled.

        Args:
            params: The request's parameters; changed in place.
            prompts: All prompts of the call.
            stop: Where an answer ends.

        Raises:
            ValueError: If `stop` is in `params` too, or `max_tokens=-1` stands beside
                several prompts.
        """
        add_stop(params, stop)
        if params.get("max_tokens") == -1:
            if len(prompts) != 1:
                msg = (
                    "max_tokens=-1 fills the context behind one prompt, and there are"
                    f" {len(prompts)}: give a number"
                )
                raise ValueError(msg)
            params["max_tokens"] = self.max_tokens_for_prompt(prompts[0])
        size = self.batch_size
        return [prompts[at : at + size] for at in range(0, len(prompts), size)]

    # Tokens.

    @staticmethod
    def modelname_to_contextsize(modelname: str) -> int:
        """Tokens that fit into the context of a model, prompt and answer together.

        Raises:
            ValueError: If the model is not known.
        """
        return context_size(modelname)

    @property
    def max_context_size(self) -> int:
        """Tokens that fit into the context of this model."""
        return self.modelname_to_contextsize(self.model_name)

    def max_tokens_for_prompt(self, prompt: str) -> int:
        """Tokens that are left for the answer behind `prompt`."""
        return self.max_context_size - self.get_num_tokens(prompt)
