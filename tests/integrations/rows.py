"""The rows of the matrix: each integration, its protocol, and its provider's errors."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import httpx
from langchain_core.language_models.chat_models import BaseChatModel

from tests.support.providers.anthropic import ANTHROPIC
from tests.support.providers.bedrock import CONVERSE, INVOKE_MODEL
from tests.support.providers.cohere import COHERE
from tests.support.providers.gemini import GEMINI, GEMINI_LIST
from tests.support.providers.ibm import IBM
from tests.support.providers.mistral import MISTRAL
from tests.support.providers.ollama import OLLAMA
from tests.support.providers.openai import GROQ, OPENAI
from tests.support.providers.responses import RESPONSES
from tests.support.providers.server import Error, Protocol, tls
from tests.support.providers.vertex import VERTEX

Method = Literal["invoke", "ainvoke", "stream", "astream"]
METHODS: Final[tuple[Method, ...]] = ("invoke", "ainvoke", "stream", "astream")
_KEY: Final = "sk-test-0123456789"


@dataclass(frozen=True, slots=True)
class Row:
    """One integration.

    Attributes:
        cls: Its chat model, as `package:Class`, without `langchain_`.
        protocol: What its provider speaks.
        fields: The arguments of its class; `{url}` is the server's address.
        provider: Whose own words its errors have, in `errors.json`.
        methods: Those that can be tried.
        has_tools: Whether it can be offered functions.
        mode: Which of its provider's APIs it uses, if there are several.
        own_flaws: What the bare model itself makes of a healthy answer.
        loses_headers: The methods that drop the headers of an error.
        unknown_faults: The columns that its protocol cannot have.
    """

    cls: str
    protocol: Protocol
    fields: Mapping[str, Any]
    provider: str
    has_tools: bool = True
    mode: str = ""
    methods: tuple[Method, ...] = METHODS
    own_flaws: str = ""
    loses_headers: tuple[str, ...] = ()
    unknown_faults: tuple[str, ...] = ()

    @property
    def errors(self) -> Mapping[str, Error]:
        return _ERRORS[self.provider]

    @property
    def notes(self) -> str:
        lost = " and ".join(self.loses_headers)
        parts = [self.own_flaws, lost and f"`Retry-After` is lost in {lost}"]
        return "; ".join(part for part in parts if part)

    @property
    def package(self) -> str:
        return f"langchain_{self.cls.partition(':')[0]}"

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    def model(self, url: str) -> BaseChatModel:
        """The model, talking to the server at `url`."""
        name = self.cls.partition(":")[2]
        fields = _filled(self.fields, url)
        module = importlib.import_module(self.package)
        if name == "ChatVertexAI":
            auth = importlib.import_module("google.auth.credentials")
            fields["credentials"] = auth.AnonymousCredentials()
            if self.protocol.is_grpc:
                fields |= _grpc_clients(url)
        if name == "ChatWatsonx":
            sdk = importlib.import_module("ibm_watsonx_ai")
            credentials = sdk.Credentials(
                url=url, token=_KEY, version="5.3", instance_id="openshift"
            )
            verify = ssl.create_default_context(cafile=tls()[1])
            fields["watsonx_client"] = sdk.APIClient(
                credentials,
                verify=tls()[1],
                httpx_client=httpx.Client(verify=verify),
                async_httpx_client=httpx.AsyncClient(verify=verify),
            )
        if name == "ChatPerplexity":  # It has no field for the address.
            sdk = importlib.import_module("perplexity")
            client = {"api_key": fields["api_key"], "base_url": fields.pop("base_url")}
            fields["client"] = sdk.Perplexity(**client)
            fields["async_client"] = sdk.AsyncPerplexity(**client)
        if name == "ChatHuggingFace":
            endpoint = module.HuggingFaceEndpoint(**fields)
            model: BaseChatModel = module.ChatHuggingFace(llm=endpoint, model_id="sick")
        else:
            model = getattr(module, name)(**fields)
        return model


def _grpc_clients(url: str) -> dict[str, Any]:
    """Vertex AI's clients over connections without TLS."""
    grpc = importlib.import_module("grpc")
    service = importlib.import_module(
        "google.cloud.aiplatform_v1beta1.services.prediction_service"
    )
    transports = importlib.import_module(f"{service.__name__}.transports")
    address = url.removeprefix("http://")
    sync = transports.PredictionServiceGrpcTransport(
        channel=grpc.insecure_channel(address)
    )
    clients = {"client": service.PredictionServiceClient(transport=sync)}
    with contextlib.suppress(RuntimeError):  # Without an event loop.
        asyncio.get_running_loop()
        aio = transports.PredictionServiceGrpcAsyncIOTransport(
            channel=grpc.aio.insecure_channel(address)
        )
        clients["async_client"] = service.PredictionServiceAsyncClient(transport=aio)
    return clients


def _filled(value: Any, url: str) -> Any:
    if isinstance(value, str):
        return value.replace("{url}", url)
    if isinstance(value, Mapping):
        return {name: _filled(one, url) for name, one in value.items()}
    return value


def _own_errors() -> dict[str, dict[str, Error]]:
    """Each provider's errors in its own words, by the name of a column."""
    text = Path(__file__).with_name("errors.json").read_text("utf-8")
    known: dict[str, dict[str, Error]] = {}
    for provider, entries in json.loads(text).items():
        like = entries.pop("like", "")
        own = {name: Error(**entry) for name, entry in entries.items()}
        for name, error in own.items():
            if isinstance(error.body, str):  # A page.
                own[name] = error._replace(body=error.body.encode())
        known[provider] = {**known.get(like, {}), **own}
    return known


_ERRORS: Final = _own_errors()
_FIELDS: Final = {"model": "sick", "api_key": _KEY, "base_url": "{url}"}
_OPENAI_FIELDS: Final = {**_FIELDS, "base_url": "{url}/v1"}
_AWS_FIELDS: Final = {
    "region_name": "us-east-1",
    "endpoint_url": "{url}",
    "aws_access_key_id": "AKIATEST",
    "aws_secret_access_key": "secret-0123456789",
    # Seconds of botocore's read timeout, until which the event loop's end waits for the
    # thread of a silent call.
    "timeout": 3,
}
_CLAUDE: Final = "anthropic.claude-3-sonnet-20240229-v1:0"

ROWS: Final[Mapping[str, Row]] = {
    "openai": Row("openai:ChatOpenAI", OPENAI, _OPENAI_FIELDS, "openai"),
    "openai-responses": Row(
        "openai:ChatOpenAI",
        RESPONSES,
        {**_OPENAI_FIELDS, "use_responses_api": True},
        "openai",
        mode="Responses",
    ),
    "anthropic": Row("anthropic:ChatAnthropic", ANTHROPIC, _FIELDS, "anthropic"),
    "google-genai": Row(
        "google_genai:ChatGoogleGenerativeAI", GEMINI, _FIELDS, "gemini"
    ),
    "aws-converse": Row(
        "aws:ChatBedrockConverse", CONVERSE, {"model": _CLAUDE, **_AWS_FIELDS}, "amazon"
    ),
    "aws-invoke": Row(
        "aws:ChatBedrock", INVOKE_MODEL, {"model": _CLAUDE, **_AWS_FIELDS}, "amazon"
    ),
    "mistralai": Row("mistralai:ChatMistralAI", MISTRAL, _OPENAI_FIELDS, "mistral"),
    "groq": Row("groq:ChatGroq", GROQ, _FIELDS, "groq"),
    "cohere": Row(
        "cohere:ChatCohere",
        COHERE,
        {"model": "command-a", "cohere_api_key": _KEY, "base_url": "{url}"},
        "cohere",
        own_flaws="a sync stream has no usage, and repeats the pieces of a tool call;"
        " a router asks for the whole call instead",
    ),
    "ollama": Row(
        "ollama:ChatOllama", OLLAMA, {"model": "sick", "base_url": "{url}"}, "ollama"
    ),
    "fireworks": Row("fireworks:ChatFireworks", OPENAI, _FIELDS, "fireworks"),
    "deepseek": Row(
        "deepseek:ChatDeepSeek",
        OPENAI,
        {"model": "sick", "api_key": _KEY, "api_base": "{url}/v1"},
        "deepseek",
    ),
    "xai": Row(
        "xai:ChatXAI",
        OPENAI,
        {"model": "sick", "api_key": _KEY, "xai_api_base": "{url}/v1/"},
        "xai",
    ),
    "openrouter": Row(
        "openrouter:ChatOpenRouter", OPENAI, _OPENAI_FIELDS, "openrouter"
    ),
    "huggingface": Row(
        "huggingface:ChatHuggingFace",
        OPENAI,
        {
            "endpoint_url": "{url}",
            "huggingfacehub_api_token": _KEY,
            "task": "text-generation",
        },
        "huggingface",
    ),
    "nvidia": Row(
        "nvidia_ai_endpoints:ChatNVIDIA",
        OPENAI,
        {"model": "sick", "api_key": "nvapi-test0123456789", "base_url": "{url}/v1"},
        "nvidia",
        loses_headers=("ainvoke", "astream"),
    ),
    "litellm": Row(
        "litellm:ChatLiteLLM",
        OPENAI,
        {"model": "openai/sick", "api_key": _KEY, "api_base": "{url}/v1"},
        "openai",
    ),
    # Async it speaks gRPC only.
    "google-vertexai": Row(
        "google_vertexai:ChatVertexAI",
        GEMINI_LIST,
        {
            "model_name": "gemini-sick",
            "project": "p",
            "location": "us-central1",
            "api_endpoint": "{url}",
            "api_transport": "rest",
        },
        "gemini",
        mode="REST",
        own_flaws="a stream's reason is `FINISH_REASON_UNSPECIFIEDSTOP`",
        methods=("invoke", "stream"),
    ),
    "google-vertexai-grpc": Row(
        "google_vertexai:ChatVertexAI",
        VERTEX,
        {"model_name": "gemini-sick", "project": "p", "location": "us-central1"},
        "gemini over gRPC",
        mode="gRPC",
        own_flaws="a stream's reason is `FINISH_REASON_UNSPECIFIEDSTOP`",
        loses_headers=METHODS,
        unknown_faults=("502 page", "page as 200", "empty 200", "no body"),
    ),
    "perplexity": Row(
        "perplexity:ChatPerplexity", OPENAI, _FIELDS, "perplexity", has_tools=False
    ),
    "together": Row("together:ChatTogether", OPENAI, _OPENAI_FIELDS, "together"),
    "ibm": Row(
        "ibm:ChatWatsonx",
        IBM,
        {"model_id": "sick", "validate_model": False},
        "ibm",
        loses_headers=("stream", "astream"),
    ),
    "cerebras": Row("cerebras:ChatCerebras", OPENAI, _OPENAI_FIELDS, "openai"),
}
