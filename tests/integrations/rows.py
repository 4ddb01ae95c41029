"""The rows of the matrix: each integration, its protocol, and its provider's errors."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.util
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import httpx
from langchain_core.language_models.chat_models import BaseChatModel

from tests.support.providers.anthropic import ANTHROPIC
from tests.support.providers.bedrock import CONVERSE, INVOKE_MODEL
from tests.support.providers.cohere import COHERE
from tests.support.providers.gemini import GEMINI, GEMINI_LIST
from tests.support.providers.ibm import IBM
from tests.support.providers.ibm import error as ibm_error
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
        cls: Its chat model, as `package:Class`.
        protocol: What its provider speaks.
        fields: The arguments of its class; `{url}` is the server's address.
        errors: The provider's own wordings, by the name of a column.
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
    errors: Mapping[str, Error] = field(default_factory=dict)
    has_tools: bool = True
    mode: str = ""
    methods: tuple[Method, ...] = METHODS
    own_flaws: str = ""
    loses_headers: tuple[str, ...] = ()
    unknown_faults: tuple[str, ...] = ()

    @property
    def notes(self) -> str:
        lost = " and ".join(self.loses_headers)
        parts = [self.own_flaws, lost and f"`Retry-After` is lost in {lost}"]
        return "; ".join(part for part in parts if part)

    @property
    def package(self) -> str:
        return self.cls.partition(":")[0]

    @property
    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.package) is not None

    def model(self, url: str) -> BaseChatModel:
        """The model, talking to the server at `url`."""
        package, _, name = self.cls.partition(":")
        fields = _filled(self.fields, url)
        module = importlib.import_module(package)
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


def _openai_like(
    message: str, status: int, code: str | None = None, **more: Any
) -> Error:
    error = {"message": message, "type": "invalid_request_error", "code": code}
    return Error(status, {"error": error | more})


def _plain(status: int, /, **body: Any) -> Error:
    return Error(status, body)


def _google(status: int, name: str, message: str, *details: Any, **more: Any) -> Error:
    error = {"code": status, "message": message, "status": name, "details": details}
    return Error(status, {"error": error}, **more)


def _retry_info(seconds: str) -> dict[str, str]:
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": seconds}


_LENGTH: Final = (
    "This model's maximum context length is 8192 tokens. However, your messages"
    " resulted in 9000 tokens."
)
_OPENAI: Final = {
    "own 429": _openai_like(
        "Rate limit reached for gpt-4o on tokens per min (TPM): Limit 10000, Used 9000,"
        " Requested 2000. Please try again in 1.5s.",
        429,
        "rate_limit_exceeded",
        type="tokens",
    )._replace(wait=1.5),
    "wrong key": _openai_like(
        "Incorrect API key provided: sk-t***789.", 401, "invalid_api_key"
    ),
    "unknown model": _openai_like(
        "The model `sick` does not exist or you do not have access to it.",
        404,
        "model_not_found",
    ),
    "context": _openai_like(_LENGTH, 400, "context_length_exceeded", param="messages"),
    "filter": _openai_like(
        "The response was filtered due to the prompt triggering Azure OpenAI's content"
        " management policy.",
        400,
        "content_filter",
    ),
    "quota": _openai_like(
        "You exceeded your current quota, please check your plan and billing details.",
        429,
        "insufficient_quota",
        type="insufficient_quota",
    ),
}
_ANTHROPIC: Final = {
    name: Error(status, {"type": "error", "error": {"type": kind, "message": message}})
    for name, status, kind, message in (
        ("wrong key", 401, "authentication_error", "invalid x-api-key"),
        ("unknown model", 404, "not_found_error", "model: sick"),
        (
            "context",
            400,
            "invalid_request_error",
            "prompt is too long: 209000 tokens > 200000 maximum",
        ),
        (
            "filter",
            400,
            "invalid_request_error",
            "Output blocked by content filtering policy",
        ),
        (
            "quota",
            400,
            "invalid_request_error",
            "Your credit balance is too low to access the Anthropic API.",
        ),
    )
}
_ANTHROPIC["own 429"] = Error(
    429,
    {
        "type": "error",
        "error": {
            "type": "rate_limit_error",
            "message": "This request would exceed your organization's rate limit",
        },
    },
    {"retry-after": "2", "anthropic-ratelimit-requests-remaining": "0"},
    2.0,
)
_GEMINI: Final = {
    "own 429": _google(
        429,
        "RESOURCE_EXHAUSTED",
        "You exceeded your current quota, please check your plan and billing details."
        " Please retry in 1.5s.",
        {
            "@type": "type.googleapis.com/google.rpc.QuotaFailure",
            "violations": [{"quotaId": "GenerateRequestsPerMinutePerProjectPerModel"}],
        },
        _retry_info("1.5s"),
        wait=1.5,
    ),
    "wrong key": _google(
        400,
        "INVALID_ARGUMENT",
        "API key not valid. Please pass a valid API key.",
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": "API_KEY_INVALID",
        },
    ),
    "unknown model": _google(
        404, "NOT_FOUND", "models/sick is not found for API version v1beta"
    ),
    "context": _google(
        400,
        "INVALID_ARGUMENT",
        "The input token count (1200000) exceeds the maximum number of tokens allowed"
        " (1048576).",
    ),
    "quota": _google(
        429,
        "RESOURCE_EXHAUSTED",
        "You exceeded your current quota, please check your plan and billing details.",
        {
            "@type": "type.googleapis.com/google.rpc.QuotaFailure",
            "violations": [
                {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}
            ],
        },
        _retry_info("40s"),
    ),
}
_AMAZON: Final = {
    name: _plain(status, __type=kind, message=message)
    for name, status, kind, message in (
        (
            "own 429",
            429,
            "ThrottlingException",
            "Too many requests, please wait before trying again.",
        ),
        (
            "wrong key",
            403,
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        ),
        (
            "403",
            403,
            "AccessDeniedException",
            "You don't have access to the model with the specified model ID.",
        ),
        (
            "unknown model",
            400,
            "ValidationException",
            "The provided model identifier is invalid.",
        ),
        (
            "context",
            400,
            "ValidationException",
            "Input is too long for requested model.",
        ),
        (
            "filter",
            400,
            "ValidationException",
            "The content was blocked by content filtering policy.",
        ),
        (
            "quota",
            429,
            "ThrottlingException",
            "Too many tokens per day, please wait before trying again.",
        ),
    )
}
_MISTRAL: Final = {
    "wrong key": _plain(401, detail="Unauthorized"),
    "unknown model": _plain(
        400,
        object="error",
        message="Invalid model: sick",
        type="invalid_model",
        code="1500",
    ),
    "context": _plain(
        400,
        object="error",
        message="Prompt contains 40000 tokens and 0 draft tokens, too large for model"
        " with 32768 maximum context length",
        type="invalid_request_prompt",
        code="3051",
    ),
    "quota": _plain(402, detail="Payment required: you have reached your usage limit"),
}
_COHERE: Final = {
    name: _plain(status, id="e1", message=message)
    for name, status, message in (
        (
            "own 429",
            429,
            "You are using a Trial key, which is limited to 20 API calls / minute.",
        ),
        ("wrong key", 401, "invalid api token"),
        (
            "unknown model",
            404,
            "model 'sick' not found, make sure the correct model ID was used",
        ),
        ("context", 400, "too many tokens: size limit exceeded by 12000 tokens."),
        (
            "quota",
            429,
            "You are using a Trial key, which is limited to 1000 API calls / month.",
        ),
    )
}
_OLLAMA: Final = {
    "unknown model": _plain(404, error="model 'sick' not found"),
    "context": _plain(
        400, error="the request exceeds the available context size, try increasing it"
    ),
}
_GROQ: Final = _OPENAI | {
    "own 429": _openai_like(
        "Rate limit reached for model `llama` on tokens per minute (TPM): Limit 6000,"
        " Used 5034, Requested 1443. Please try again in 1.77s.",
        429,
        "rate_limit_exceeded",
        type="tokens",
    )._replace(wait=1.77),
    "context": _openai_like(
        "Request too large for model `llama` on tokens per minute (TPM): Limit 12000,"
        " Requested 14137, please reduce your message size and try again.",
        413,
        "rate_limit_exceeded",
        type="tokens",
    ),
    "quota": _openai_like(
        "The account has insufficient credit balance", 402, "insufficient_balance"
    ),
    "529": _openai_like(
        "Flex tier capacity exceeded, please try again later", 498, "capacity_exceeded"
    ),
}
_DEEPSEEK: Final = _OPENAI | {
    "wrong key": _openai_like(
        "Authentication Fails, Your api key: ****789 is invalid",
        401,
        "invalid_request_error",
    ),
    "unknown model": _openai_like("Model Not Exist", 400, "invalid_request_error"),
    "filter": _openai_like("Content Exists Risk", 400, "invalid_request_error"),
    "quota": _openai_like("Insufficient Balance", 402, "invalid_request_error"),
}
_XAI: Final = {
    "own 429": _plain(
        429,
        code="Some resource has been exhausted",
        error="Too many requests for team. Rate limited to 1 per second.",
    ),
    "wrong key": _plain(
        400,
        code="Client specified an invalid argument",
        error="Incorrect API key provided: xa***89. You can obtain an API key from"
        " https://console.x.ai.",
    ),
    "403": _plain(
        403,
        code="The caller does not have permission to execute the specified operation",
        error="The API key is currently blocked: it may not use this endpoint",
    ),
    "unknown model": _plain(
        404,
        code="Some requested entity was not found",
        error="The model sick does not exist or your team does not have access to it.",
    ),
    "context": _plain(
        400,
        code="Client specified an invalid argument",
        error="This model's maximum prompt length is 131072 but the request contains"
        " 537812 tokens.",
    ),
    "filter": _plain(
        403,
        code="The caller does not have permission to execute the specified operation",
        error="Content violates usage guidelines. Team: t, API key ID: k",
    ),
    "quota": _plain(
        403,
        code="The caller does not have permission to execute the specified operation",
        error="Your team has either used all available credits or reached its monthly"
        " spending limit.",
    ),
}
_OPENROUTER: Final = {
    name: _plain(status, error={"code": status, "message": message, **more})
    for name, status, message, more in (
        (
            "own 429",
            429,
            "Provider returned error",
            {
                "metadata": {
                    "raw": "sick is temporarily rate-limited upstream",
                    "provider_name": "p",
                    "retry_after_seconds": 2,
                }
            },
        ),
        ("wrong key", 401, "User not found.", {}),
        ("unknown model", 400, "sick is not a valid model ID", {}),
        (
            "context",
            400,
            "This endpoint's maximum context length is 8192 tokens.",
            {},
        ),
        (
            "filter",
            403,
            "sick requires moderation on p. Your input was flagged for violence.",
            {"metadata": {"reasons": ["violence"], "flagged_input": "x"}},
        ),
        (
            "quota",
            402,
            "Insufficient credits. Add more using https://openrouter.ai/credits",
            {},
        ),
    )
}
_OPENROUTER["own 429"] = _OPENROUTER["own 429"]._replace(wait=2.0)
_FIREWORKS: Final = _OPENAI | {
    "unknown model": _plain(
        404,
        error={
            "object": "error",
            "type": "invalid_request_error",
            "code": "NOT_FOUND",
            "message": "Model not found, inaccessible, and/or not deployed",
        },
    ),
    "quota": _plain(
        412,
        error={
            "code": "PRECONDITION_FAILED",
            "message": "Account x is suspended, possibly due to reaching the monthly"
            " spending limit or failure to pay past invoices.",
        },
    ),
}
_NVIDIA: Final = {
    "own 429": _plain(429, status=429, title="Too Many Requests"),
    "wrong key": _plain(
        401, status=401, title="Unauthorized", detail="Authentication failed"
    ),
    "403": _plain(403, status=403, title="Forbidden", detail="Authorization failed"),
    "unknown model": _plain(
        404,
        status=404,
        title="Not Found",
        detail="Function 'sick': Not found for account",
    ),
    "quota": _plain(
        402, status=402, title="Payment Required", detail="Account has no credits left"
    ),
}
_HF: Final = {
    "own 429": _plain(429, error="Too Many Requests: rate limit reached"),
    "wrong key": _plain(401, error="Invalid username or password."),
    "unknown model": _plain(
        400,
        error={
            "message": "The requested model 'sick' is not supported by any provider you"
            " have enabled.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_supported",
        },
    ),
    "context": _plain(
        422,
        error="Input validation error: `inputs` tokens + `max_new_tokens` must be <="
        " 8192. Given: 9000 `inputs` tokens and 100 `max_new_tokens`",
        error_type="validation",
    ),
    "quota": _plain(
        402,
        error="You have exceeded your monthly included credits for Inference.",
    ),
}
_PERPLEXITY: Final = _OPENAI | {
    "wrong key": Error(
        401,
        b"<html><head><title>401 Authorization Required</title></head></html>",
        {"content-type": "text/html"},
    ),
    "unknown model": _openai_like(
        "Invalid model 'sick'. Permitted models can be found in the documentation",
        400,
        type="invalid_model",
    ),
    "quota": _openai_like(
        "You exceeded your current quota",
        401,
        "insufficient_quota",
        type="insufficient_quota",
    ),
}
_TOGETHER: Final = _OPENAI | {
    "context": _openai_like(
        "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193",
        422,
    ),
    "wrong key": _openai_like(
        "Invalid API key provided. You can find your API key at https://api.together.xyz/settings/api-keys.",
        401,
        "invalid_api_key",
    ),
}

_IBM: Final = {
    name: Error(status, ibm_error(status, message, code))
    for name, status, code, message in (
        (
            "own 429",
            429,
            "rate_limit_reached_requests",
            "Rate limit of 8 requests per second was reached",
        ),
        (
            "wrong key",
            401,
            "authentication_token_not_valid",
            "Failed to authenticate the request due to invalid token: malformed token",
        ),
        (
            "unknown model",
            404,
            "model_not_supported",
            "Model 'sick' is not supported for this environment",
        ),
        (
            "context",
            400,
            "invalid_input_argument",
            "the number of input tokens 9000 cannot exceed the total tokens limit 8192",
        ),
        ("quota", 403, "token_quota_reached", "Token quota reached"),
    )
}

_OPENAI_FIELDS: Final = {"model": "sick", "api_key": _KEY, "base_url": "{url}/v1"}
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
    "openai": Row("langchain_openai:ChatOpenAI", OPENAI, _OPENAI_FIELDS, _OPENAI),
    "openai-responses": Row(
        "langchain_openai:ChatOpenAI",
        RESPONSES,
        {**_OPENAI_FIELDS, "use_responses_api": True},
        _OPENAI,
        mode="Responses",
    ),
    "anthropic": Row(
        "langchain_anthropic:ChatAnthropic",
        ANTHROPIC,
        {"model": "sick", "api_key": _KEY, "base_url": "{url}"},
        _ANTHROPIC,
    ),
    "google-genai": Row(
        "langchain_google_genai:ChatGoogleGenerativeAI",
        GEMINI,
        {"model": "sick", "api_key": _KEY, "base_url": "{url}"},
        _GEMINI,
    ),
    "aws-converse": Row(
        "langchain_aws:ChatBedrockConverse",
        CONVERSE,
        {"model": _CLAUDE, **_AWS_FIELDS},
        _AMAZON,
    ),
    "aws-invoke": Row(
        "langchain_aws:ChatBedrock",
        INVOKE_MODEL,
        {"model": _CLAUDE, **_AWS_FIELDS},
        _AMAZON,
    ),
    "mistralai": Row(
        "langchain_mistralai:ChatMistralAI",
        MISTRAL,
        {"model": "sick", "api_key": _KEY, "base_url": "{url}/v1"},
        _MISTRAL,
    ),
    "groq": Row(
        "langchain_groq:ChatGroq",
        GROQ,
        {"model": "sick", "api_key": _KEY, "base_url": "{url}"},
        _GROQ,
    ),
    "cohere": Row(
        "langchain_cohere:ChatCohere",
        COHERE,
        {"model": "command-a", "cohere_api_key": _KEY, "base_url": "{url}"},
        _COHERE,
        own_flaws="a sync stream has no usage, and repeats the pieces of a tool call;"
        " a router asks for the whole call instead",
    ),
    "ollama": Row(
        "langchain_ollama:ChatOllama",
        OLLAMA,
        {"model": "sick", "base_url": "{url}"},
        _OLLAMA,
    ),
    "fireworks": Row(
        "langchain_fireworks:ChatFireworks",
        OPENAI,
        {"model": "sick", "api_key": _KEY, "base_url": "{url}"},
        _FIREWORKS,
    ),
    "deepseek": Row(
        "langchain_deepseek:ChatDeepSeek",
        OPENAI,
        {"model": "sick", "api_key": _KEY, "api_base": "{url}/v1"},
        _DEEPSEEK,
    ),
    "xai": Row(
        "langchain_xai:ChatXAI",
        OPENAI,
        {"model": "sick", "api_key": _KEY, "xai_api_base": "{url}/v1/"},
        _XAI,
    ),
    "openrouter": Row(
        "langchain_openrouter:ChatOpenRouter",
        OPENAI,
        {"model": "sick", "api_key": _KEY, "base_url": "{url}/v1"},
        _OPENROUTER,
    ),
    "huggingface": Row(
        "langchain_huggingface:ChatHuggingFace",
        OPENAI,
        {
            "endpoint_url": "{url}",
            "huggingfacehub_api_token": _KEY,
            "task": "text-generation",
        },
        _HF,
    ),
    "nvidia": Row(
        "langchain_nvidia_ai_endpoints:ChatNVIDIA",
        OPENAI,
        {"model": "sick", "api_key": "nvapi-test0123456789", "base_url": "{url}/v1"},
        _NVIDIA,
        loses_headers=("ainvoke", "astream"),
    ),
    "litellm": Row(
        "langchain_litellm:ChatLiteLLM",
        OPENAI,
        {"model": "openai/sick", "api_key": _KEY, "api_base": "{url}/v1"},
        _OPENAI,
    ),
    # Async it speaks gRPC only.
    "google-vertexai": Row(
        "langchain_google_vertexai:ChatVertexAI",
        GEMINI_LIST,
        {
            "model_name": "gemini-sick",
            "project": "p",
            "location": "us-central1",
            "api_endpoint": "{url}",
            "api_transport": "rest",
        },
        _GEMINI,
        mode="REST",
        own_flaws="a stream's reason is `FINISH_REASON_UNSPECIFIEDSTOP`",
        methods=("invoke", "stream"),
    ),
    "google-vertexai-grpc": Row(
        "langchain_google_vertexai:ChatVertexAI",
        VERTEX,
        {"model_name": "gemini-sick", "project": "p", "location": "us-central1"},
        _GEMINI | {"529": _google(503, "UNAVAILABLE", "The model is overloaded.")},
        mode="gRPC",
        own_flaws="a stream's reason is `FINISH_REASON_UNSPECIFIEDSTOP`",
        loses_headers=METHODS,
        unknown_faults=("502 page", "page as 200", "empty 200", "no body"),
    ),
    "perplexity": Row(
        "langchain_perplexity:ChatPerplexity",
        OPENAI,
        {"model": "sick", "api_key": _KEY, "base_url": "{url}"},
        _PERPLEXITY,
        has_tools=False,
    ),
    "together": Row(
        "langchain_together:ChatTogether",
        OPENAI,
        {"model": "sick", "api_key": _KEY, "base_url": "{url}/v1"},
        _TOGETHER,
    ),
    "ibm": Row(
        "langchain_ibm:ChatWatsonx",
        IBM,
        {"model_id": "sick", "validate_model": False},
        _IBM,
        loses_headers=("stream", "astream"),
    ),
    "cerebras": Row(
        "langchain_cerebras:ChatCerebras",
        OPENAI,
        {"model": "sick", "api_key": _KEY, "base_url": "{url}/v1"},
        _OPENAI,
    ),
}
