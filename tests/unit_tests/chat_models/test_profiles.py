"""Profiles of models: what is known of a model without asking it."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.language_models import ModelProfile
from langchain_openai.data._profiles import _PROFILES as OFFICIAL
from pydantic import SecretStr

from langchain_retryrouter import GPTRouter, GPTRouterModel
from langchain_retryrouter._gptrouter.connection import _PROFILES, profile_of

OPENAIS = sorted(set(_PROFILES) & set(OFFICIAL))


@pytest.mark.parametrize("name", OPENAIS)
def test_the_table_says_what_langchains_own_says(name: str) -> None:
    """For OpenAI's models every entry equals the one that langchain-openai ships."""
    profile = profile_of([name])
    assert profile is not None
    assert {key: OFFICIAL[name][key] for key in profile} == profile


def test_most_of_the_table_can_be_compared() -> None:
    """The comparison above has enough models."""
    assert len(OPENAIS) >= 12


def test_a_list_can_do_what_all_its_models_can() -> None:
    """Any model of the list may answer, so the profile has the least of each value."""
    profile = profile_of(["gpt-5", "gpt-4"])
    assert profile is not None
    assert profile["max_input_tokens"] == profile["max_output_tokens"] == 8_192
    assert profile["image_inputs"] is profile["reasoning_output"] is False


@pytest.mark.parametrize("names", [["gpt-4o", "of-mine"], ["of-mine"], []], ids=str)
def test_a_list_with_an_unknown_model_has_no_profile(names: list[str]) -> None:
    """There is no profile if a model of the list is unknown."""
    assert profile_of(names) is None


def test_a_model_has_the_profile_of_its_list() -> None:
    """`profile` is that of the list, or the one that is given."""
    fields: dict[str, Any] = {
        "models_priority_list": [GPTRouterModel(name="gpt-4o", provider_name="p")],
        "gpt_router_api_key": SecretStr("sk"),
    }
    assert GPTRouter(**fields).profile == profile_of(["gpt-4o"])
    own: ModelProfile = {"max_input_tokens": 5}
    assert GPTRouter(**fields, profile=own).profile == own
