"""What a `GPTRouter` is told at construction, and what becomes of each argument."""

from __future__ import annotations

from typing import Any

import pytest
from gpt_router.client import GPTRouterClient
from gpt_router.models import GPTRouterMetadata
from langchain_core.runnables import ConfigurableField
from pydantic import SecretStr, ValidationError

from langchain_retryrouter import GPTRouter, GPTRouterModel
from langchain_retryrouter.testing import STUB_TEXT, FaultyGateway
from tests.unit_tests.conftest import Twin

from .conftest import GPT_4, KEY, NewModel

OTHER = GPTRouterModel(name="gpt-4o", provider_name="chat_openai")


# --- names ---


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("requst_timeout", "no argument 'requst_timeout'; did you mean 'request_ti"),
        ("maxretries", "did you mean 'max_retries'"),
        ("temprature", "did you mean 'temperature'"),
        ("seed", "put it into `model_kwargs`"),
        ("callback_manager", "no argument 'callback_manager'"),
    ],
)
def test_an_argument_that_there_is_not_is_refused(
    new_llm: NewModel, name: str, told: str
) -> None:
    """A misspelt argument is an error with the name that was meant, and no key."""
    with pytest.raises(TypeError, match=told) as caught:
        new_llm(**{name: 5})

    assert KEY not in str(caught.value)


def test_what_is_the_providers_goes_to_the_provider(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """An argument that some gateway reads may be given without `model_kwargs`."""
    llm = new_llm(user="ann", raw_event=True, model_kwargs={"seed": 5})

    assert llm.model_kwargs == {"seed": 5, "user": "ann", "raw_event": True}
    twin.invoke(llm, "hi")
    sent = gateway.requests[0].parameters
    assert (sent["user"], sent["raw_event"], sent["seed"]) == ("ann", True, 5)


@pytest.mark.parametrize(
    "arguments",
    [
        {"user": "ann", "model_kwargs": {"user": "bob"}},
        {"api_key": "sk-2"},
        {"base_url": "http://127.0.0.1:1"},
        {"stop": ["a"], "stop_sequences": ["b"]},
    ],
    ids=["user", "key", "address", "stop"],
)
def test_nothing_is_given_twice(new_llm: NewModel, arguments: dict[str, Any]) -> None:
    """Of two values for one thing one would be lost, so that is an error."""
    with pytest.raises(TypeError, match="is given twice"):
        new_llm(**arguments)


def test_the_names_of_other_integrations_do(twin: Twin, gateway: FaultyGateway) -> None:
    """Key, address, time limit and stops go by the names of LangChain's own as well."""
    arguments: dict[str, Any] = {
        "api_key": "sk-1",
        "base_url": gateway.url,
        "timeout": 5,
        "stop_sequences": ["stub"],
    }
    llm = GPTRouter(models_priority_list=[GPT_4], **arguments)

    assert llm.gpt_router_api_key == SecretStr("sk-1")
    assert llm.request_timeout == 5
    assert twin.invoke(llm, "hi").content == "Hello from the "
    assert gateway.requests[0].parameters["stop"] == ["stub"]


@pytest.mark.parametrize("client", [5, "http://127.0.0.1"], ids=repr)
def test_a_client_must_be_one(new_llm: NewModel, client: Any) -> None:
    """What cannot send is refused when it is given."""
    with pytest.raises(ValidationError, match="like the SDK's GPTRouterClient, not"):
        new_llm(client=client)


def test_a_missing_key_shows_nothing_else(gateway: FaultyGateway) -> None:
    """The error names what is missing, and not what was given, such as a password."""
    with pytest.raises(ValidationError, match="GPT_ROUTER_API_KEY") as caught:
        GPTRouter(
            models_priority_list=[GPT_4],
            gpt_router_api_base=gateway.url,
            proxy="http://ann:secret@127.0.0.1:1",
        )

    assert "secret" not in str(caught.value)


# --- what the provider is told ---

SAMPLING: dict[str, Any] = {
    "top_p": 0.5,
    "frequency_penalty": 0.1,
    "presence_penalty": -0.1,
    "stop": ["END"],
    "reasoning_effort": "low",
    "thinking": {"type": "enabled", "budget_tokens": 2048},
    "web_search_options": {"search_context_size": "low"},
    "output_config": {"effort": "high"},
}


def test_every_field_of_the_provider_is_sent(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """A field that is set goes out under its own name, and one that is not does not."""
    twin.invoke(new_llm(**SAMPLING), "hi")
    twin.invoke(new_llm(), "hi")

    first, second = (request.parameters for request in gateway.requests)
    assert {name: first[name] for name in SAMPLING} == SAMPLING
    assert not set(SAMPLING) & set(second)


def test_a_calls_own_options_win(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """What a call says is sent in the place of the field's value, `stop` included."""
    llm = new_llm(**SAMPLING)

    twin.invoke(llm, "hi", stop=["stub"], top_p=1, reasoning_effort="high")

    sent = gateway.requests[0].parameters
    assert (sent["stop"], sent["top_p"], sent["reasoning_effort"]) == (
        ["stub"],
        1,
        "high",
    )


# --- what the gateway is told for itself ---


@pytest.mark.parametrize("way", ["invoke", "stream"])
def test_b6_metadata_reaches_the_gateway(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway, way: str
) -> None:
    """Tag, user, conversation and application stand where the SDK puts them."""
    llm = new_llm(
        tag="nightly",
        user_id="u1",
        history_id="h1",
        app_id="a1",
        gateway_metadata={"team": "blue"},
    )

    getattr(twin, way)(llm, "hi")

    (request,) = gateway.requests
    assert {
        name: request.payload[name]
        for name in ("tag", "createdByUserId", "historyId", "appId", "metadata")
    } == {
        "tag": "nightly",
        "createdByUserId": "u1",
        "historyId": "h1",
        "appId": "a1",
        "metadata": {
            "tag": "nightly",
            "created_by_user_id": "u1",
            "history_id": "h1",
            "appId": "a1",
            "team": "blue",
        },
    }
    assert not {"tag", "user_id", "history_id"} & set(request.parameters)


def test_a_calls_metadata_is_laid_over_the_models_and_the_clients(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """Each says what it knows; what a call does not say stays as it was."""
    llm = new_llm(tag="nightly", user_id="u1")
    llm.client.additional_metadata = GPTRouterMetadata(appId="a1", tag="client")

    twin.invoke(llm.bind(user_id="u2"), "hi", history_id="h2")

    assert gateway.requests[0].payload["metadata"] == {
        "tag": "nightly",
        "created_by_user_id": "u2",
        "history_id": "h2",
        "appId": "a1",
    }


def test_langchains_metadata_stays_with_the_tracers(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """`metadata` of a run is LangChain's, and is not sent to anybody."""
    twin.invoke(new_llm(metadata={"secret": 1}), "hi", {"metadata": {"other": 2}})

    assert gateway.requests[0].payload["metadata"] == {}


# --- which models are asked ---


def asked(gateway: FaultyGateway) -> list[list[str]]:
    return [[one["modelName"] for one in r.payload["data"]] for r in gateway.requests]


def test_a_call_can_have_its_own_models(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """By `bind`, option, name or config: the list of the call wins."""
    llm = new_llm(models_priority_list=[GPT_4, OTHER])
    configurable = llm.configurable_fields(
        models_priority_list=ConfigurableField(id="models")
    )
    as_dicts = [{"name": "gpt-4o", "provider_name": "chat_openai"}]

    answers = [
        twin.invoke(llm.bind(models_priority_list=[OTHER]), "hi"),
        twin.invoke(llm, "hi", models_priority_list=as_dicts),
        twin.invoke(llm, "hi", model="gpt-4o"),
        twin.invoke(configurable, "hi", {"configurable": {"models": as_dicts}}),
    ]

    assert asked(gateway) == [
        ["gpt-4o"],
        ["gpt-4o"],
        ["gpt-4o", "gpt-4-0613"],
        ["gpt-4o"],
    ]
    assert {a.response_metadata["model_name"] for a in answers} == {"gpt-4o"}


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ({"model": "gpt-5"}, "model='gpt-5' is not in models_priority_list"),
        ({"models_priority_list": []}, "at least one"),
        ({"models_priority_list": ["gpt-4o"]}, "must be a list of GPTRouterModel"),
    ],
    ids=["model", "empty", "names"],
)
def test_models_that_cannot_be_asked_are_refused(
    twin: Twin,
    new_llm: NewModel,
    gateway: FaultyGateway,
    option: dict[str, Any],
    told: str,
) -> None:
    """A model without a provider, or none at all, is an error saying what to do."""
    with pytest.raises(ValueError, match=told):
        twin.invoke(new_llm(), "hi", **option)

    assert gateway.requests == []


@pytest.mark.usefixtures("old_ways")
def test_metadata_reaches_a_users_own_client(
    twin: Twin, new_llm: NewModel, gateway: FaultyGateway
) -> None:
    """The SDK's client is handed the metadata in its own way."""
    client = GPTRouterClient(gateway.url, KEY)

    answer = twin.invoke(new_llm(client=client, tag="nightly"), "hi")

    assert answer.content == STUB_TEXT
    assert gateway.requests[0].payload["tag"] == "nightly"
