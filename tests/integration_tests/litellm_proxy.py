"""LiteLLM's proxy in a process and an environment of its own, from its Python package.

Its models are of two kinds. Some have no provider: LiteLLM simulates an answer or a
failure (`mock_completion` in its `main.py`). The others ask a provider that the test
scripts. There is no database, no internet, and the proxy does not retry where a test
counts requests.
"""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import urllib3

from tests.support.redis_server import free_port, wait

KEY: Final = "sk-master-key-of-the-tests"
INSTRUCT, CHAT = "instruct", "chat"
"""They ask the provider, at the endpoint of their name."""
PATIENT, MOODY = "patient", "moody"
"""As `CHAT`; the proxy retries one itself, and puts the other in cooldown."""

# Made by the Makefile, which writes `installed` last.
_ENVIRONMENT = Path(__file__).parents[2] / ".venvs" / "litellm"
_START_SECONDS, _STOP_SECONDS, _POLL_SECONDS = 90.0, 10.0, 0.1
_LOG_EXCERPT = 4000

_SIMULATIONS: Final[dict[str, dict[str, Any]]] = {
    "well": {"mock_response": "Hello from LiteLLM"},
    "throttled": {"mock_response": "litellm.RateLimitError"},
    "failing": {"mock_response": "litellm.InternalServerError"},
    "overlong": {"mock_response": "litellm.ContextWindowExceededError"},
    "overloaded": {"mock_response": "Exception: mock_streaming_error"},
    # No answer for their timeout, in seconds, and then a 408.
    "slow": {"mock_timeout": True, "timeout": 0.1},
    "silent": {"mock_timeout": True, "timeout": 10},
}


@dataclass(frozen=True)
class Proxy:
    """A running proxy."""

    url: str
    """The base that Azure clients take."""

    @property
    def openai_url(self) -> str:
        """The base that OpenAI clients take."""
        return f"{self.url}/v1"


@contextlib.contextmanager
def running_proxy(provider_url: str, folder: Path) -> Iterator[Proxy]:
    """A proxy in front of the provider at `provider_url`; its files are in `folder`.

    Raises:
        RuntimeError: It is not installed, or did not start; says what it logged.
    """
    if not (_ENVIRONMENT / "installed").exists():
        msg = f"no {_ENVIRONMENT}: run these tests by `make integration_tests`"
        raise RuntimeError(msg)
    config, log = folder / "config.json", folder / "log.txt"
    config.write_text(json.dumps(_config(provider_url)))
    port = free_port()
    proxy = Proxy(f"http://127.0.0.1:{port}")
    options = ["--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    with (
        log.open("w") as output,
        subprocess.Popen(
            [_ENVIRONMENT / "bin" / "litellm", *options],
            env=_environment(folder),
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as process,
    ):
        try:
            _wait_until_ready(proxy, process, log)
            yield proxy
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


def _config(provider_url: str) -> dict[str, Any]:
    provider = {"api_base": provider_url, "api_key": "any", "max_retries": 0}
    chat = {"model": "openai/gpt-4o", **provider}
    instruct = {"model": "text-completion-openai/gpt-3.5-turbo-instruct", **provider}
    models = [
        *(_model(name, chat, **simulated) for name, simulated in _SIMULATIONS.items()),
        _model(INSTRUCT, instruct),
        _model(CHAT, chat),
        _model(PATIENT, chat, num_retries=1),
        # Two, since a single deployment gets no cooldown for a 429.
        *({**_model(MOODY, chat, api_key=key), "model_info": {}} for key in "ab"),
    ]
    return {
        "model_list": models,
        "general_settings": {"master_key": KEY},
        "router_settings": {"num_retries": 0, "cooldown_time": 30},
    }


def _model(name: str, params: dict[str, Any], **more: Any) -> dict[str, Any]:
    # A model in cooldown would be missing in the next test: hence 0 seconds.
    return {
        "model_name": name,
        "litellm_params": {**params, **more},
        "model_info": {"cooldown_time": 0},
    }


def _environment(home: Path) -> dict[str, str]:
    # Nothing of this machine, such as a database or a key, and no internet.
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    }


def _wait_until_ready(
    proxy: Proxy, process: subprocess.Popen[bytes], log: Path
) -> None:
    deadline = time.monotonic() + _START_SECONDS
    with urllib3.PoolManager(retries=False, timeout=1.0) as pool:
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if pool.request("GET", f"{proxy.url}/health/readiness").status == 200:
                    return
            wait(_POLL_SECONDS)
    said = log.read_text()[-_LOG_EXCERPT:]
    msg = f"LiteLLM's proxy did not start (exit code {process.poll()}):\n{said}"
    raise RuntimeError(msg)
