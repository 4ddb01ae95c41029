"""Options in the gateway's form, and what is refused with its name and value."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any

import pytest
from gpt_router.models import (
    ExtendedThinking,
    SearchContextSize,
    ThinkingType,
    UserLocation,
    UserLocationApproximate,
    WebSearchOptions,
)

from langchain_retryrouter import UnsupportedOptionError
from langchain_retryrouter._gptrouter.protocol import build_params

FUNCTIONS = [{"name": "get_weather", "parameters": {"type": "object"}}]
BERLIN = {"type": "approximate", "approximate": {"city": "Berlin"}}


class Effort(Enum):
    """An enum whose members are no texts."""

    HIGH = "high"


def sent(**options: Any) -> Any:
    """What goes over the wire."""
    params = build_params({"messages": [], **options}).model_dump(exclude_none=True)
    written = json.loads(json.dumps(params))
    assert written.pop("messages") == []
    return written


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("reasoning_effort", "huge", "'high'"),
        ("thinking", {"type": "maybe"}, "'enabled' or 'disabled'"),
        ("thinking", "yes", "valid dictionary"),
        ("web_search_options", {"search_context_size": "vast"}, "'medium'"),
        ("web_search_options", {"user_location": 5}, "valid dictionary"),
        ("tool_choice", 5, "valid string, or Input should be a valid dictionary"),
        ("response_format", "json", "valid dictionary"),
        ("parallel_tool_calls", "perhaps", "valid boolean"),
        ("temperature", "hot", "valid number"),
        ("max_tokens", 1.5, "valid integer"),
        ("stop", [5], "valid string"),
        ("output_config", [1], "valid dictionary"),
    ],
)
def test_a_wrong_value_is_an_error_that_names_it(
    option: str, value: Any, told: str
) -> None:
    """A value that the gateway's form does not allow is told with what it may be."""
    with pytest.raises(UnsupportedOptionError) as caught:
        build_params({"messages": [], "n": 1, option: value})

    assert str(caught.value).startswith(f"`{option}` cannot be {value!r}: ")
    assert told in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_long_value_is_not_told_whole() -> None:
    """An error does not repeat a value of any length."""
    with pytest.raises(UnsupportedOptionError) as caught:
        build_params({"temperature": "x" * 100_000, "prompt": "y" * 100_000})

    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("option", "value", "on_the_wire"),
    [
        ("reasoning_effort", Effort.HIGH, "high"),
        (
            "thinking",
            {"type": ThinkingType.ENABLED, "budget_tokens": 2048, "of_mine": 1},
            {"type": "enabled", "budget_tokens": 2048, "of_mine": 1},
        ),
        (
            "thinking",
            ExtendedThinking(type=ThinkingType.ENABLED),
            {"type": "enabled", "budget_tokens": 1024},
        ),
        (
            "web_search_options",
            {"search_context_size": "low", "user_location": BERLIN, "of_mine": [1]},
            {"search_context_size": "low", "user_location": BERLIN, "of_mine": [1]},
        ),
        (
            "web_search_options",
            WebSearchOptions(
                search_context_size=SearchContextSize.LOW,
                user_location=UserLocation(
                    type="approximate",
                    approximate=UserLocationApproximate(city="Berlin"),
                ),
            ),
            {"search_context_size": "low", "user_location": BERLIN},
        ),
        ("logit_bias", {50256: -100}, {"50256": -100}),
        ("of_mine", {"deep": (Effort.HIGH, None)}, {"deep": ["high", None]}),
        ("tool_choice", "required", "required"),
        ("tool_choice", {"type": "function"}, {"type": "function"}),
        ("use_response_api", True, True),
        ("raw_event", False, False),
        ("output_config", {"effort": Effort.HIGH}, {"effort": "high"}),
    ],
)
def test_a_value_goes_out_as_json_has_it(
    option: str, value: Any, on_the_wire: Any
) -> None:
    """Enums and the SDK's types are sent as JSON, and nothing inside them is lost."""
    assert sent(**{option: value}) == {option: on_the_wire}


@pytest.mark.parametrize(
    ("call", "on_the_wire"),
    [
        ("auto", {"functions": FUNCTIONS}),
        ("none", {}),
        (None, {"functions": FUNCTIONS}),
        (
            "get_weather",
            {"functions": FUNCTIONS, "function_call": {"name": "get_weather"}},
        ),
        (
            {"name": "get_weather"},
            {"functions": FUNCTIONS, "function_call": {"name": "get_weather"}},
        ),
    ],
)
def test_c8_a_function_call_is_sent_as_the_gateway_takes_it(
    call: Any, on_the_wire: Any
) -> None:
    """No text goes out for `function_call`, to which the gateway would answer 500."""
    options = {"functions": FUNCTIONS, "function_call": call}

    assert sent(**options) == on_the_wire
    assert options == {"functions": FUNCTIONS, "function_call": call}


def test_messages_are_not_copied_or_changed() -> None:
    """The messages, which may hold megabytes, are sent as they were built."""
    message = {"role": "assistant", "content": None, "tool_calls": [{"id": None}]}

    params = build_params({"messages": [message]})

    assert params.messages is not None
    assert params.messages[0] is message
    assert params.model_dump(exclude_none=True) == {"messages": [message]}
