"""Who asks for an answer, streamed or not, and what he has heard of it."""

from __future__ import annotations

import functools
import operator
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessageChunk, BaseMessage
from langchain_core.outputs import Generation
from langchain_openai import ChatOpenAI
from pydantic import SecretStr

from langchain_retryrouter import (
    GPTRouter,
    GPTRouterEmbeddings,
    GPTRouterModel,
    OpenAI,
    OpenAIChat,
    RetryPolicy,
    RetryRouter,
)
from langchain_retryrouter.testing import FakeClock, FaultyGateway, Raw, Step
from langchain_retryrouter.testing.requests import RecordedRequest
from tests.promises.recordings import Protocol, Recording, Told

ONE_MODEL: Final = [GPTRouterModel(name="gpt-4", provider_name="p")]
ONCE: Final = RetryPolicy(max_retries=0)


# What is heard.


@dataclass
class Heard:
    """What a caller has of a call, whether it came to an end or not."""

    pieces: list[Any]
    error: Exception | None = None

    @property
    def told(self) -> Told:
        """All text, and the call of a tool."""
        chunks = [one for one in self.pieces if isinstance(one, AIMessageChunk)]
        whole = functools.reduce(operator.add, chunks) if chunks else None
        calls = [] if whole is None else whole.tool_call_chunks
        return Told(
            "".join(map(_text_of, self.pieces)),
            "".join(f"{call['name']}{call['args'] or ''}" for call in calls),
        )

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended, by its own account."""
        return next(filter(None, map(_finish_of, self.pieces)), None)


def _text_of(piece: Any) -> str:
    if isinstance(piece, str):
        return piece
    return str(piece.content if isinstance(piece, BaseMessage) else piece.text)


def _finish_of(piece: Any) -> str | None:
    if isinstance(piece, BaseMessage):
        return piece.response_metadata.get("finish_reason")
    facts = piece.generation_info if isinstance(piece, Generation) else None
    return (facts or {}).get("finish_reason")


# Who hears it.


@dataclass(frozen=True)
class Listener:
    """One way of asking for a stream.

    Attributes:
        name: As a reader would say it.
        protocol: Whose recordings it can hear.
        new: Makes the model.
        is_invoked: Whether the stream runs inside of `invoke`.
        is_retried: Whether a broken stream is followed by a whole one.
        is_recovered: Whether that makes good what broke after the first token too.
        has_reader: Whether the bytes are read by this package.
    """

    name: str
    protocol: Protocol
    new: Callable[[FaultyGateway, RetryPolicy], Any]
    is_invoked: bool = False
    is_retried: bool = False
    is_recovered: bool = False
    has_reader: bool = True

    def takes(self, recording: Recording) -> bool:
        """Whether it can be asked for this one."""
        # An LLM has no words for the call of a tool, and a call is never continued.
        is_text = not recording.all_told.call
        can_call = not (self.is_invoked or self.is_recovered or self._is_llm)
        # Who asks again is answered by the whole stream, which has to be one.
        is_good = recording.finish_reason is not None or not self.is_retried
        return recording.protocol == self.protocol and (is_text or can_call) and is_good

    @property
    def _is_llm(self) -> bool:
        return self.name.startswith("OpenAI")

    @property
    def tells_finish(self) -> bool:
        """Whether the caller is told why the answer ended; LLMs stream bare text."""
        return self.is_invoked or not self._is_llm

    def stream(self, llm: Any, prompt: str) -> Iterator[Any]:
        """The answer in its pieces; one piece where it is not streamed."""
        if not self.is_invoked:
            yield from llm.stream(prompt)
        elif isinstance(llm, BaseChatModel):
            yield llm.invoke(prompt)
        else:
            yield llm.generate([prompt]).generations[0][0]

    async def astream(self, llm: Any, prompt: str) -> AsyncIterator[Any]:
        """Async twin of `stream`."""
        if not self.is_invoked:
            async for piece in llm.astream(prompt):
                yield piece
        elif isinstance(llm, BaseChatModel):
            yield await llm.ainvoke(prompt)
        else:
            yield (await llm.agenerate([prompt])).generations[0][0]


def listen(listener: Listener, llm: Any, prompt: str) -> Heard:
    """Ask, and hear what there is to hear."""
    heard = Heard([])
    try:
        for piece in listener.stream(llm, prompt):
            heard.pieces.append(piece)
    except Exception as error:  # noqa: BLE001 - to be judged
        heard.error = error
    return heard


async def alisten(listener: Listener, llm: Any, prompt: str) -> Heard:
    """Async twin of `listen`."""
    heard = Heard([])
    try:
        async for piece in listener.astream(llm, prompt):
            heard.pieces.append(piece)
    except Exception as error:  # noqa: BLE001
        heard.error = error
    return heard


class Stage:
    """Says which steps answer a prompt, so that many may call at once."""

    def __init__(self, gateway: FaultyGateway) -> None:
        """Nothing is prepared yet; a request that nobody expects is an error."""
        self._steps: dict[str, list[Raw]] = {}
        gateway.always(self._next)

    def prompt_for(self, *steps: Raw) -> str:
        """A prompt whose requests are answered by `steps`, and by nothing else."""
        prompt = f"prompt {len(self._steps)}"
        self._steps[prompt] = list(reversed(steps))
        return prompt

    def _next(self, request: RecordedRequest) -> Step:
        asked = request.parameters
        said = asked.get("prompt") or asked.get("input")
        said = asked["messages"][0]["content"] if said is None else said
        return self._steps[said if isinstance(said, str) else said[0]].pop()


# All of them.


def _gateway(gateway: FaultyGateway, policy: RetryPolicy, **fields: Any) -> GPTRouter:
    return GPTRouter(
        models_priority_list=ONE_MODEL,
        gpt_router_api_base=gateway.url,
        gpt_router_api_key=SecretStr("k"),
        retry_policy=policy,
        clock=FakeClock(),
        **fields,
    )


def _llm(cls: type[OpenAI | OpenAIChat], **fields: Any) -> Callable[..., Any]:
    def new(gateway: FaultyGateway, policy: RetryPolicy) -> Any:
        return cls(
            base_url=gateway.openai_url,
            api_key="k",
            max_retries=policy.max_retries,
            retry_policy=policy,
            clock=FakeClock(),
            **fields,
        )

    return new


def chat_openai(gateway: FaultyGateway, **fields: Any) -> ChatOpenAI:
    """LangChain's own, which leaves no connection behind."""
    return ChatOpenAI(
        model="m",
        base_url=gateway.openai_url,
        api_key=SecretStr("k"),
        max_retries=0,
        default_headers={"connection": "close"},
        **fields,
    )


def _router(
    route: Callable[[FaultyGateway], BaseChatModel], recovery: str = "error"
) -> Callable[..., Any]:
    def new(gateway: FaultyGateway, policy: RetryPolicy) -> Any:
        return RetryRouter(
            routes=[route(gateway)],
            retry_policy=policy,
            stream_recovery=recovery,
            breaker=None,
            clock=FakeClock(),
        )

    return new


def _listeners() -> Iterator[Listener]:
    def over_gateway(gateway: FaultyGateway) -> BaseChatModel:
        return _gateway(gateway, ONCE)

    yield Listener("GPTRouter.stream", "gptrouter", _gateway)
    yield Listener(
        "GPTRouter(streaming=True).invoke",
        "gptrouter",
        functools.partial(_gateway, streaming=True),
        is_invoked=True,
    )
    yield Listener("OpenAI.stream", "completions", _llm(OpenAI))
    yield Listener(
        "OpenAI(streaming=True).generate",
        "completions",
        _llm(OpenAI, streaming=True),
        is_invoked=True,
    )
    yield Listener("OpenAIChat.stream", "chat", _llm(OpenAIChat))
    over_chat = functools.partial(_router, chat_openai)
    yield Listener("RetryRouter over ChatOpenAI", "chat", over_chat(), has_reader=False)
    yield Listener("RetryRouter over GPTRouter", "gptrouter", _router(over_gateway))
    yield Listener("GPTRouter, retried", "gptrouter", _gateway, is_retried=True)
    yield Listener("OpenAI, retried", "completions", _llm(OpenAI), is_retried=True)
    for recovery in ("buffer", "continue"):
        yield Listener(
            f"RetryRouter over ChatOpenAI, {recovery}",
            "chat",
            over_chat(recovery),
            is_retried=True,
            is_recovered=True,
            has_reader=False,
        )
        yield Listener(
            f"RetryRouter over GPTRouter, {recovery}",
            "gptrouter",
            _router(over_gateway, recovery),
            is_retried=True,
            is_recovered=True,
        )


LISTENERS: Final[Sequence[Listener]] = tuple(_listeners())


# Who asks for an answer in one piece.


class Unstreamed(NamedTuple):
    """One way of asking for it: of which endpoint, and how."""

    path: str
    ask: Callable[[str], Any]
    aask: Callable[[str], Awaitable[Any]]


def unstreamed(gateway: FaultyGateway) -> Iterator[Unstreamed]:
    """Every class, asked once."""
    embeddings = GPTRouterEmbeddings(
        models_priority_list=ONE_MODEL,
        gpt_router_api_base=gateway.url,
        gpt_router_api_key=SecretStr("k"),
        retry_policy=ONCE,
    )
    embed, aembed = embeddings.embed_query, embeddings.aembed_query
    yield Unstreamed("/api/v1/generate/embeddings", embed, aembed)
    for path, new in (
        ("/api/v1/generate", _gateway),
        ("/v1/completions", _llm(OpenAI)),
        ("/v1/chat/completions", _llm(OpenAIChat)),
        ("/v1/chat/completions", _router(chat_openai)),
    ):
        model = new(gateway, ONCE)
        yield Unstreamed(path, model.invoke, model.ainvoke)
