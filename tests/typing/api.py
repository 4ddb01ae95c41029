"""The public API as type checkers see it; they read this file, nothing runs it.

What a user writes must be typed without casts, and as precisely as is true.
"""

from collections.abc import AsyncGenerator, Generator
from typing import Any, assert_type

from gpt_router.models import ChunkedGenerationResponse, GenerationResponse
from langchain_core.messages import AIMessage
from pydantic import SecretStr

from langchain_retryrouter import (
    CircuitBreaker,
    EmbeddingsRouter,
    GPTRouter,
    GPTRouterEmbeddings,
    GPTRouterModel,
    OpenAI,
    RateLimitError,
    RetryBudget,
    RetryPolicy,
    RetryRouter,
    RetryRouterError,
    StreamInterruptedError,
    __version__,
)
from langchain_retryrouter.chat_models.gpt_router import (
    acompletion_with_retry,
    completion_with_retry,
)
from langchain_retryrouter.retry import WorstCase
from langchain_retryrouter.testing import FakeClock, FaultyGateway, Reset, Status

assert_type(__version__, str)

policy = RetryPolicy(max_retries=3, max_retry_after=20, deadline=30.0)
assert_type(policy.explain(attempt_timeout=10), WorstCase)
assert_type(policy.max_attempts, int)

models = [GPTRouterModel(name="gpt-4o", provider_name="chat_openai")]
llm = GPTRouter(
    models_priority_list=models,
    gpt_router_api_base="http://127.0.0.1:1",
    gpt_router_api_key=SecretStr("key"),
    retry_policy=policy,
    budget=RetryBudget(),
    breaker=CircuitBreaker(),
    timeout=(1.0, 2.0),
    clock=FakeClock(),
)
assert_type(llm.invoke("hi"), AIMessage)
assert_type(
    completion_with_retry(llm, models, messages=[]),
    GenerationResponse | Generator[ChunkedGenerationResponse, None, None],
)

embeddings = GPTRouterEmbeddings(
    models_priority_list=models,
    gpt_router_api_key=SecretStr("key"),
    endpoint="v2",
    chunk_size=16,
    max_concurrency=2,
)
assert_type(embeddings.embed_documents(["a"]), list[list[float]])
assert_type(embeddings.embed_query("a"), list[float])


async def use() -> None:
    """The async twins."""
    assert_type(await embeddings.aembed_documents(["a"]), list[list[float]])
    assert_type(await embeddings.aembed_query("a"), list[float])
    assert_type(await llm.ainvoke("hi"), AIMessage)
    assert_type(
        await acompletion_with_retry(llm, models, messages=[]),
        GenerationResponse | AsyncGenerator[ChunkedGenerationResponse, None],
    )


def errors(error: RetryRouterError) -> None:
    """The facts on an error."""
    assert_type(error.status_code, int | None)
    assert_type(error.retry_after, float | None)
    assert_type(error.attempts, int)
    assert_type(error.delivered, str)
    if isinstance(error, RateLimitError | StreamInterruptedError):
        raise error


def gateway() -> None:
    """A script."""
    with FaultyGateway() as faulty:
        faulty.script(Status(429, {"retry-after": "1"}), Reset())
        assert_type(faulty.url, str)


def completions(model: OpenAI) -> None:
    """An LLM answers with text."""
    assert_type(model.invoke("hi"), str)
    extra: dict[str, Any] = model.model_kwargs
    assert_type(extra, dict[str, Any])


router = RetryRouter(routes=["openai:gpt-5.5", llm])
assert_type(RetryRouter.from_config("router.toml", clock=FakeClock()), RetryRouter)
assert_type(router.to_config(), dict[str, Any])
assert_type(router.health(), dict[str, Any])

several = EmbeddingsRouter(routes=["openai:text-embedding-3-small", embeddings])
assert_type(several.embed_documents(["hi"]), list[list[float]])
assert_type(several.space, str)
