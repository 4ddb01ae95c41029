"""What comes before an answer, and is none."""

from __future__ import annotations

from typing import Any

import pytest

from langchain_retryrouter import GPTRouter, GPTRouterModel, RetryPolicy, errors
from langchain_retryrouter.testing import FaultyGateway, Raw

_BODY = b'{"choices":[{"text":"hi","finish_reason":"stop"}]}'
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_BODY), _BODY)
)
_HINTS = b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n"


def model_of(gateway: FaultyGateway) -> GPTRouter:
    """One that asks once."""
    arguments: dict[str, Any] = {
        "models_priority_list": [GPTRouterModel(name="m", provider_name="p")],
        "gpt_router_api_base": gateway.url,
        "gpt_router_api_key": "any",
    }
    return GPTRouter(retry_policy=RetryPolicy(max_retries=0), **arguments)


@pytest.mark.parametrize("interim", [b"HTTP/1.1 100 Continue\r\n\r\n", _HINTS])
def test_an_interim_answer_is_passed_by(twin: Any, interim: bytes) -> None:
    """Hints of what is to come, as proxies send them, are not taken for the answer."""
    with FaultyGateway() as gateway:
        gateway.script(Raw(interim * 2 + _ANSWER))
        assert twin.invoke(model_of(gateway), "hi").content == "hi"


def test_interim_answers_have_an_end() -> None:
    """A server that goes on announcing an answer is left, without any time limit."""
    with FaultyGateway() as gateway:
        gateway.script(Raw(_HINTS * 101 + _ANSWER))
        with pytest.raises(errors.APIConnectionError, match="interim answers"):
            model_of(gateway).invoke("hi")
