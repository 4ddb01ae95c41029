"""Moving over from langchain-community: the same call through both classes.

Both call the same gateway. What they send and return is compared field by field; what
differs on purpose is listed here, with its reason.
"""

import inspect
import warnings
from types import ModuleType
from typing import Any, get_args, get_type_hints

import pytest
from gpt_router.client import GPTRouterClient
from gpt_router.models import ChunkedGenerationResponse, GenerationResponse
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from pydantic import SecretStr

from langchain_retryrouter.chat_models import gpt_router as ours
from langchain_retryrouter.testing import STUB_TEXT, Answer, FaultyGateway, Status

from .conftest import KEY, Env

ADDED_TO_METADATA = {
    "model_provider": "LangChain's standard name for who serves the model",
    "model_name": "LangChain's standard name for the model that answered",
    "provider_name": "which provider of the list answered",
    "provider_id": "the gateway's id of it, which the SDK parses and the class drops",
    "model_id": "likewise",
    "id": "the provider's id of the answer, for a support case",
    "retryrouter": "the attempts that the answer took",
}


@pytest.fixture(scope="module")
def theirs() -> ModuleType:
    """langchain-community's module, whose import warns that it is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from langchain_community.chat_models import gpt_router  # noqa: PLC0415

        return gpt_router


@pytest.fixture
def old_llm(theirs: ModuleType, gateway: FaultyGateway, old_ways: None) -> Any:  # noqa: ARG001
    """langchain-community's model of the test's gateway; one attempt a call."""
    return theirs.GPTRouter(
        models_priority_list=[model_of(theirs), other_model_of(theirs)],
        gpt_router_api_base=gateway.url,
        gpt_router_api_key=KEY,
        max_retries=1,  # It counts attempts.
    )


def model_of(module: ModuleType) -> Any:
    return module.GPTRouterModel(name="gpt-4-0613", provider_name="chat_openai")


def other_model_of(module: ModuleType) -> Any:
    return module.GPTRouterModel(name="gpt-4o", provider_name="azure_chat_openai")


# --- what is sent ---

SAME_MESSAGES: list[BaseMessage] = [
    SystemMessage("Be brief."),
    HumanMessage("Hi"),
    AIMessage("Hello"),
    HumanMessage(
        [
            {"type": "text", "text": "What is this?"},
            {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}},
        ]
    ),
    ChatMessage(role="assistant", content="A cat."),
    AIMessage(
        "", additional_kwargs={"function_call": {"name": "f", "arguments": "{}"}}
    ),
    FunctionMessage(name="f", content="42"),
    ToolMessage("42", tool_call_id="call_0"),
]


@pytest.mark.parametrize(
    ("way", "options"),
    [
        ("invoke", {}),
        ("invoke", {"n": 2}),
        ("invoke", {"top_p": 0.5, "max_tokens": 9}),
        ("stream", {}),
    ],
)
def test_the_same_request_is_sent(
    env: Env, old_llm: Any, way: str, options: dict[str, Any]
) -> None:
    """Messages, models and options are sent as before."""
    models = [model_of(ours), other_model_of(ours)]
    list(getattr(old_llm, way)(SAME_MESSAGES, **options))
    env.message(way, env.llm(models_priority_list=models), SAME_MESSAGES, **options)

    old, new = env.gateway.requests
    assert [one["order"] for one in new.json["data"]] == [1, 2]
    # One retry owner: else the gateway would repeat each of our attempts.
    assert new.json == {**old.json, "maxRetries": 0}
    for name in ("content-type", "ws-secret", "host"):
        assert old.headers[name] == new.headers[name]


# --- what comes back ---


def test_the_same_answer_comes_back(env: Env, old_llm: Any) -> None:
    """An answer has the same content and metadata, and its usage as JSON."""
    old, new = old_llm.invoke("hi"), env.invoke(env.llm(), "hi")

    assert type(new) is type(old)
    assert (new.content, new.additional_kwargs) == (old.content, old.additional_kwargs)
    was, told = dict(old.response_metadata), dict(new.response_metadata)
    assert told.pop("token_usage") == was.pop("token_usage").model_dump()
    added = {name: told.pop(name) for name in ADDED_TO_METADATA}
    assert told == was
    assert None not in added.values()


def test_the_same_generations_come_back(env: Env, old_llm: Any) -> None:
    """`generate` gives the same generations, and does not change its input."""
    messages: list[list[BaseMessage]] = [[HumanMessage("5 + x = 18?")], []]
    messages[1].append(HumanMessage("x"))
    copies = [list(prompt) for prompt in messages]

    old = old_llm.generate(messages, n=2).generations
    new = env.generate(env.llm(), messages, n=2).generations

    told = [[(g.text, g.generation_info) for g in generations] for generations in new]
    was = [[(g.text, g.generation_info) for g in generations] for generations in old]
    assert told == was
    assert [[text for text, _ in prompt] for prompt in told] == [[STUB_TEXT] * 2] * 2
    assert messages == copies


def test_the_same_stream_comes_back(env: Env, old_llm: Any) -> None:
    """A stream has the same tokens in the same pieces, and the same finish reason."""
    old = list(old_llm.stream("hi"))
    new = env.stream(env.llm(), "hi")

    assert [c.content for c in new if c.content] == [
        c.content for c in old if c.content
    ]
    for chunks in (old, new):
        reasons = [c.response_metadata.get("finish_reason") for c in chunks]
        assert [reason for reason in reasons if reason] == ["stop"]


def test_the_same_answer_comes_out_of_completion_with_retry(
    env: Env, theirs: ModuleType, old_llm: Any
) -> None:
    """The function returns the SDK's `GenerationResponse`, with the call's attempts."""
    env.gateway.always(Answer(id="chatcmpl-1"))
    messages = [{"role": "user", "content": "hi"}]

    old = theirs.completion_with_retry(old_llm, [model_of(theirs)], messages=messages)
    new = env.complete(ours, env.llm(), [model_of(ours)], messages=messages)

    assert isinstance(new, GenerationResponse)
    told = new.model_dump()
    assert len(told.pop("retryrouter")["attempts"]) == 1
    # Beside what the SDK knows ours has room for what it drops, such as tool calls.
    assert GenerationResponse.model_validate(told) == old


def test_the_same_events_come_out_of_completion_with_retry(
    env: Env, theirs: ModuleType, old_llm: Any
) -> None:
    """The function returns the SDK's events, and `end`, which the SDK drops."""
    asked: dict[str, Any] = {
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
    }

    old = list(theirs.completion_with_retry(old_llm, [model_of(theirs)], **asked))
    *new, end = env.complete(ours, env.llm(), [model_of(ours)], **asked)

    assert [(e.event, e.data) for e in new] == [(e.event, e.data) for e in old]
    assert all(isinstance(event, ChunkedGenerationResponse) for event in new)
    assert end.event == "end"
    assert [line["outcome"] for line in end.retryrouter["attempts"]] == ["ok"]


@pytest.mark.parametrize("status", [400, 401, 403, 406, 429, 500, 503])
def test_the_same_except_clauses_catch(env: Env, old_llm: Any, status: int) -> None:
    """The old class's error for a status is a base of ours."""
    env.gateway.always(Status(status))
    with pytest.raises(Exception) as old:  # noqa: PT011 - whatever it is, is the point
        old_llm.invoke("hi")

    with pytest.raises(old.type):
        env.invoke(env.llm(max_retries=0), "hi")


# --- names ---


def test_every_field_is_there_with_its_default(theirs: ModuleType) -> None:
    """Every field of the old class is one of ours, with the same default and alias."""
    for name, old in theirs.GPTRouter.model_fields.items():
        new = ours.GPTRouter.model_fields[name]
        assert (new.alias, new.exclude) == (old.alias, old.exclude), name
        assert new.get_default(call_default_factory=True, validated_data={}) == (
            old.get_default(call_default_factory=True, validated_data={})
        ), name


def test_every_field_is_taken(theirs: ModuleType) -> None:
    """The constructor takes the arguments of the old one."""
    settings: dict[str, Any] = {
        "gpt_router_api_base": "http://127.0.0.1:1",
        "gpt_router_api_key": "sk",
        "temperature": 0.1,
        "model_kwargs": {"top_p": 0.5},
        "max_retries": 2,
        "streaming": False,
        "n": 2,
        "max_tokens": 7,
    }

    old = theirs.GPTRouter(models_priority_list=[model_of(theirs)], **settings)
    new = ours.GPTRouter(models_priority_list=[model_of(ours)], **settings)

    settings["gpt_router_api_key"] = SecretStr("sk")
    for name, value in settings.items():
        assert getattr(new, name) == getattr(old, name) == value
    was, told = old._identifying_params, new._identifying_params  # noqa: SLF001
    for params in (was, told):
        [model] = params["models_priority_list"]
        params["models_priority_list"] = model.model_dump()
    assert told == was
    assert new._llm_type == old._llm_type  # noqa: SLF001 - traces tell it
    assert new.lc_secrets == old.lc_secrets
    assert isinstance(new.client, GPTRouterClient)


def test_the_same_environment_is_read(
    theirs: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Key and address come from the same variables, with the same default."""
    monkeypatch.setenv("GPT_ROUTER_API_KEY", "sk-from-the-environment")
    old, new = (
        module.GPTRouter(models_priority_list=[model_of(module)])
        for module in (theirs, ours)
    )
    assert new.gpt_router_api_base == old.gpt_router_api_base
    assert new.gpt_router_api_key == old.gpt_router_api_key


NOT_TAKEN_OVER = {
    # Raised only where the `gptrouter` package is missing; here it is a dependency.
    "GPTRouterException"
}


def test_every_public_name_of_the_module_is_there(theirs: ModuleType) -> None:
    """The module has the names of the old one, with the same signatures.

    Subclasses that call or override the class's methods go on working.
    """
    own = {
        name
        for name, value in vars(theirs).items()
        if getattr(value, "__module__", None) == theirs.__name__
        and not name.startswith("_")
    } | {"DEFAULT_API_BASE_URL"}

    assert own - set(dir(ours)) == NOT_TAKEN_OVER
    for name in own - NOT_TAKEN_OVER:
        old, new = getattr(theirs, name), getattr(ours, name)
        if inspect.isfunction(old):
            assert parameters_of(new) == parameters_of(old), name
    for name in ("_generate", "_agenerate", "_stream", "_astream"):
        old, new = getattr(theirs.GPTRouter, name), getattr(ours.GPTRouter, name)
        assert parameters_of(new) == parameters_of(old), name


@pytest.mark.parametrize("name", ["completion_with_retry", "acompletion_with_retry"])
def test_the_functions_annotations_can_be_read(name: str) -> None:
    """`get_type_hints` resolves every annotation of the function."""
    hints = get_type_hints(getattr(ours, name))

    assert hints["llm"] is ours.GPTRouter
    assert GenerationResponse in get_args(hints["return"])


def test_a_function_that_was_replaced_is_called(
    env: Env, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replaced function of the module, for example in a test, is the one called."""
    choice = {"index": 0, "text": "replaced", "finish_reason": "stop"}
    said = {"id": "1", "model": "gpt-4", "choices": [choice]}
    answer = GenerationResponse.model_validate(said)

    async def asked_async(*_: Any, **__: Any) -> GenerationResponse:
        return answer

    monkeypatch.setattr(ours, "completion_with_retry", lambda *_, **__: answer)
    monkeypatch.setattr(ours, "acompletion_with_retry", asked_async)

    assert env.invoke(env.llm(), "hi").content == "replaced"


def parameters_of(function: Any) -> list[tuple[str, Any, Any]]:
    parameters = inspect.signature(function).parameters.values()
    return [(one.name, one.kind, one.default) for one in parameters]


def test_ordered_generation_requests_are_the_same(theirs: ModuleType) -> None:
    """They have the options of the call, without `stream`, which is the gateway's."""
    old, new = (
        module.get_ordered_generation_requests(
            [model_of(module), other_model_of(module)], temperature=0.5, stream=True
        )
        for module in (theirs, ours)
    )

    written = [one.model_dump(exclude_none=True, by_alias=True) for one in new]
    assert written == [one.model_dump(exclude_none=True, by_alias=True) for one in old]


# --- what langchain-community's own tests cover ---


def test_tokens_reach_the_callback(env: Env) -> None:
    """With `streaming=True`, `invoke` passes each token to the callback once."""
    tokens: list[str] = []

    class Tokens(BaseCallbackHandler):
        def on_llm_new_token(self, token: Any, **_: Any) -> None:
            tokens.append(token)

    assert env.ask("streaming invoke", callbacks=[Tokens()]).content == STUB_TEXT
    assert [*filter(None, tokens)] == ["Hello", " from", " the", " stub", " upstream"]
