"""What a `GPTRouter` can do, as properties of LangChain's standard tests."""

from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from langchain_core.language_models import BaseChatModel
from langchain_tests.integration_tests import ChatModelIntegrationTests

from langchain_retryrouter import GPTRouter, GPTRouterModel
from langchain_retryrouter.testing._exchange import Edition


# langchain-core's own advice to OpenAI's users; the suite's documents have no names.
@pytest.mark.filterwarnings("ignore:OpenAI may require a filename:UserWarning")
# Timing is switched off for all tests, and this suite's one timed test streams untimed.
@pytest.mark.filterwarnings("ignore:Benchmark fixture was not used:UserWarning")
class GPTRouterSuite(ChatModelIntegrationTests):
    """All of LangChain's standard tests of chat models, over a gateway.

    `supported_usage_metadata_details` stays empty, since the gateway counts no more
    than the tokens of the prompt and of the answer.
    """

    @pytest.fixture(autouse=True)
    def downloads(self, monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
        """The pictures and sounds that the suite would have fetched from the web."""
        fetched: list[bytes] = []

        def get(url: str, **_: Any) -> httpx.Response:
            fetched.append(f"the bytes of {url}".encode())
            return httpx.Response(200, content=fetched[-1])

        monkeypatch.setattr(
            "langchain_tests.integration_tests.chat_models.httpx.get", get
        )
        monkeypatch.setenv("LANGCHAIN_TESTS_USER_AGENT", "for a site that is not asked")
        return fetched

    edition: Edition = "hosted"
    models: tuple[GPTRouterModel, GPTRouterModel] = (
        GPTRouterModel(name="gpt-4-0613", provider_name="chat_openai"),
        GPTRouterModel(name="gpt-3.5-turbo-1106", provider_name="chat_openai"),
    )

    @property
    def chat_model_class(self) -> type[BaseChatModel]:
        return GPTRouter

    @property
    def chat_model_params(self) -> dict[str, Any]:
        """Two models, so that a call can name the other one."""
        return {"models_priority_list": list(self.models)}

    @property
    def model_override_value(self) -> str | None:
        """The model that a call names with `model=`."""
        return self.models[1].name

    @property
    def has_tool_choice(self) -> bool:
        """The public gateway drops `tool_choice`, and its model never sees it."""
        return self.edition == "hosted"

    @property
    def structured_output_kwargs(self) -> dict[str, Any]:
        """The public gateway refuses `json_schema`; `json_mode` has its own test."""
        method = "json_schema" if self.edition == "hosted" else "function_calling"
        return {"method": method}

    supports_json_mode = True
    # The gateway passes message contents on unchanged, whatever they are.
    supports_image_inputs = True
    supports_image_urls = True
    supports_image_tool_message = True
    supports_pdf_inputs = True
    supports_pdf_tool_message = True
    supports_audio_inputs = True
    supports_video_inputs = True  # the suite has no test of them yet
    supports_anthropic_inputs = True
    # The test of a stream's time would replay a recording. VCR makes them by taking the
    # HTTP library's place, which is not what is tested here.
    enable_vcr_tests = True

    @pytest.fixture
    def vcr(self) -> SimpleNamespace:
        """A recording with nothing on it, so that the test streams for real."""
        return SimpleNamespace(responses=[])
