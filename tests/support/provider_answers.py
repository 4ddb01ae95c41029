"""What real providers send, for tests of RetryRouter and of the LLMs."""

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from langchain_retryrouter.testing import Status

_FILE: Final = Path(__file__).parents[1] / "unit_tests/data/provider_answers.json"
DATA: Final[dict[str, Any]] = json.loads(_FILE.read_text(encoding="utf-8"))


def status_of(entry: dict[str, Any]) -> Status:
    """An entry's response, in which dates lie 30 seconds ahead."""
    ahead = time.time() + 30  # noqa: TID251 - the models compare them with the time
    iso = datetime.fromtimestamp(ahead, UTC).isoformat()
    headers = {"content-type": "application/json", **entry.get("headers", {})}
    text = json.dumps([headers, entry["body"]]).replace("<now + 30 s, ISO 8601>", iso)
    text = text.replace("<now + 30 s, milliseconds>", str(int(ahead * 1e3)))
    return Status(entry["status"], *json.loads(text))


def check(error: Any, entry: dict[str, Any]) -> None:
    """Compare an error with an entry: kind, status, and the seconds to wait."""
    assert (error.kind, error.status_code) == (entry["kind"], entry["status"])
    if "asked" in entry:
        # Dates lie in the future by a little less than when they were written.
        assert error.retry_after == pytest.approx(entry["asked"], abs=2)
    else:
        assert error.retry_after in {None, 34.07}
