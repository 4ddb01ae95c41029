"""IBM watsonx.ai's text chat. Source: cloud.ibm.com/apidocs/watsonx-ai#text-chat."""

from __future__ import annotations

from typing import Any, Final

from tests.support.providers import openai
from tests.support.providers.server import Protocol, Reply, sse

_CODES: Final = {
    400: "invalid_request_entity",
    401: "authentication_token_not_valid",
    403: "authorization_rejected",
    404: "model_not_supported",
    429: "consumption_limit_reached",
    503: "downstream_request_failed",
}


def _own(body: dict[str, Any]) -> dict[str, Any]:
    renamed = {**body, "model_id": body["model"], "created_at": "2026-11-29T10:00:00Z"}
    del renamed["model"], renamed["object"], renamed["system_fingerprint"]
    return renamed


def _events(reply: Reply) -> tuple[list[Any], list[Any]]:
    first, rest = openai.chunks(reply)
    rest = [_own(one) for one in rest if isinstance(one, dict)]  # It sends no [DONE].
    return [_own(one) for one in first], rest


def error(status: int, message: str, code: str = "") -> dict[str, Any]:
    code = code or _CODES.get(status, "internal_server_error")
    errors = [{"code": code, "message": message}]
    return {"errors": errors, "trace": "t1", "status_code": status}


IBM: Final = Protocol(
    lambda reply: _own(openai.whole(reply)),
    _events,
    error,
    lambda event: sse(event, "message"),
    lambda message: sse(error(500, message), "error"),
    lambda path, _: "chat_stream" in path,
    is_tls=True,
    is_setup=lambda path: path.startswith("/ml/wml_services/"),
)
"""Its client takes https only, and asks for the version when it is made."""
