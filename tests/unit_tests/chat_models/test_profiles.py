"""Profiles of models: what is known of a model without asking it."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import ModelProfile
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from langchain_retryrouter import GPTRouter, GPTRouterModel

OPENAIS = [
    *("gpt-4", "gpt-4-turbo", "gpt-4.1", "gpt-4.1-mini", "gpt-4.1-nano", "gpt-4o"),
    *("gpt-4o-mini", "gpt-5", "gpt-5-mini", "gpt-5-nano", "o3", "o4-mini"),
]


def profile_of(*names: str, **fields: Any) -> ModelProfile | None:
    """The profile of a GPTRouter that asks these models."""
    models = [GPTRouterModel(name=name, provider_name="p") for name in names]
    key = SecretStr("sk")
    return GPTRouter(
        models_priority_list=models, gpt_router_api_key=key, **fields
    ).profile


@pytest.mark.parametrize("name", OPENAIS)
def test_the_table_says_what_langchains_own_says(name: str) -> None:
    """For OpenAI's models every entry equals the one that langchain-openai ships."""
    profile = profile_of(name)
    official = ChatOpenAI(model=name, api_key=SecretStr("sk")).profile
    assert profile
    assert official is not None
    assert profile.items() <= official.items()


def test_a_list_can_do_what_all_its_models_can() -> None:
    """Any model of the list may answer, so the profile has the least of each value."""
    profile = profile_of("gpt-5", "gpt-4")
    assert profile is not None
    assert profile["max_input_tokens"] == profile["max_output_tokens"] == 8_192
    assert profile["image_inputs"] is profile["reasoning_output"] is False


@pytest.mark.parametrize("names", [["gpt-4o", "of-mine"], ["of-mine"]], ids=str)
def test_a_list_with_an_unknown_model_has_no_profile(names: list[str]) -> None:
    """There is no profile if a model of the list is unknown."""
    assert profile_of(*names) is None


def test_a_profile_can_be_given() -> None:
    """`profile` is what the caller says, where the caller says it."""
    own: ModelProfile = {"max_input_tokens": 5}
    assert profile_of("gpt-4o", profile=own) == own
