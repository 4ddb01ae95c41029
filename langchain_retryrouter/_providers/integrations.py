"""What is known about the packages whose chat models can be routes, as data.

This is the only module that names another package's classes. `INTEGRATIONS` says, for
each package, how its own retries are switched off by public means and whether its
answers name a finish reason. Classes are recognised by the name of their package, so
that no SDK is imported that the user does not use.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.chat_models import BaseChatModel
from pydantic import SecretStr, ValidationError

from langchain_retryrouter._secrets import redact_text
from langchain_retryrouter.policy import RetryPolicy

Method: TypeAlias = Literal["generate", "stream"]


@dataclass(frozen=True, slots=True)
class RetriesDisabled:
    """A model as a route may use it: a copy if its retries could be switched off.

    `warning` says what could not be switched off, `disabled` names what was, such as
    `max_retries=2`, and `options` of each call do it. One attempt sends so many
    `requests` at most, and waits so many seconds between them, as far as it is known.
    """

    model: BaseChatModel
    warning: str | None = None
    disabled: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    requests: int = 1
    waited: float = 0.0


def _keep(model: BaseChatModel, facts: Integration) -> RetriesDisabled:
    """A model without a public switch, as it is, with a warning if it is needed."""
    retries = getattr(model, "max_retries", None)
    if type(retries) is int:
        is_once = retries in facts.sends_once
        amount, requests = f"max_retries={retries}", 1 + max(0, retries)
    else:
        is_once = facts.hidden_requests == 1
        amount, requests = "by default", facts.hidden_requests
    if is_once:
        return RetriesDisabled(model)
    warning = (
        f"repeats by itself ({amount}), and its retries multiply with the router's:"
        f" {facts.advice} ({type(model).__name__})"
    )
    return RetriesDisabled(model, warning, requests=requests)


# Clients that a class makes for itself; users give HTTP clients.
_BUILT: Final = re.compile(r"(?!\w*http)\w*client")


def _made_again(model: BaseChatModel, **changes: Any) -> BaseChatModel:
    """A model of the same class and fields, but for `changes`, with its own clients."""
    fields = type(model).model_fields
    names = [name for name in model.model_fields_set if not _BUILT.fullmatch(name)]
    given = {**{name: getattr(model, name) for name in names}, **changes}
    aliases = {name: field.alias or name for name, field in fields.items()}
    return type(model)(**{aliases.get(name, name): given[name] for name in given})


def _rebuild(model: BaseChatModel, facts: Integration) -> RetriesDisabled:
    """The same model made again with `max_retries=0`."""
    retries = getattr(model, "max_retries", None)
    if retries in facts.sends_once:
        return RetriesDisabled(model)
    try:
        once: Any = _made_again(model, max_retries=0)
    except Exception:  # noqa: BLE001 - a subclass may take other arguments
        return _keep(model, facts)
    if getattr(once, "max_retries", None) != 0 or type(once) is not type(model):
        return _keep(model, facts)
    amount = "the SDK's retries" if retries is None else f"max_retries={retries}"
    return RetriesDisabled(once, disabled=amount)


def _with_options(model: Any, facts: Integration) -> RetriesDisabled:
    """A copy whose SDK clients send once, over the same connections."""
    update: dict[str, Any] = {"max_retries": 0}
    retries = model.max_retries or 0
    for root, resource in (
        ("root_client", "client"),
        ("root_async_client", "async_client"),
    ):
        client, used = getattr(model, root, None), getattr(model, resource, None)
        if client is None and used is None:
            continue  # No client yet: it is made of the field.
        if client is None or used is not client.chat.completions:
            if model.max_retries == 0:
                continue  # The user says so; the client itself does not tell.
            warning = (
                f"was given a {resource} of its own, which may repeat by itself: build"
                " that client with max_retries=0, and the model with max_retries=0 too"
            )
            return RetriesDisabled(model, warning, requests=1 + facts.hidden_requests)
        once = client.with_options(max_retries=0)
        update |= {root: once, resource: once.chat.completions}
        retries = max(retries, client.max_retries)
    if not retries:
        return RetriesDisabled(model)
    copy = model.model_copy(update=update)
    return RetriesDisabled(copy, disabled=f"max_retries={retries}")


def _watsonx(model: Any, facts: Integration) -> RetriesDisabled:
    """A copy whose requests are sent once, over the client that the model was given.

    The SDK repeats twice over: in its inference object, and in its own HTTP clients.
    """
    client = getattr(model, "watsonx_client", None)
    if client is None or getattr(model, "watsonx_model", None) is None:
        return _keep(model, facts)
    try:
        once = type(model.watsonx_model)(
            model_id=model.model_id,
            deployment_id=model.deployment_id or None,
            params=model.params,
            api_client=client,
            validate=False,
            max_retries=0,
        )
        used = (client.httpx_client, client.async_httpx_client)
    except Exception:  # noqa: BLE001 - another version may take other arguments
        return _keep(model, facts)
    copy = model.model_copy(update={"watsonx_model": once})
    if any(type(one).__module__.startswith("ibm_watsonx_ai") for one in used):
        kept = _keep(model, replace(facts, hidden_requests=4))
        return replace(kept, model=copy, disabled="the inference object's retries")
    return RetriesDisabled(copy, disabled="the SDK's retries")


def _own_model(model: Any, facts: Integration) -> RetriesDisabled:
    """`GPTRouter` walks its list of models once; a nested `RetryRouter` stays as it is.

    The gateway repeats three times by default where the model itself does not.
    """
    if hasattr(model, "routes"):
        worst = model.explain()
        costs = {"requests": worst.requests, "waited": worst.waited}
        retries = model.retry_policy.max_retries
        if not retries:
            return RetriesDisabled(model, **costs)
        warning = (
            f"is a RetryRouter that repeats by itself (max_retries={retries}), up to"
            f" {worst.requests} requests for one attempt: give it"
            " RetryPolicy(max_retries=0), or put its routes into this router"
        )
        return RetriesDisabled(model, warning, **costs)
    if not hasattr(model, "models_priority_list"):
        return _keep(model, facts)
    models = len(model.models_priority_list) if model.failover else 1
    retries = min(model.max_retries, models - 1)
    policy = replace(model.retry_policy or RetryPolicy(), max_retries=retries)
    update = {"max_retries": retries, "retry_policy": model.retry_policy and policy}
    if hasattr(model, "gateway_max_retries"):  # Of a chat model.
        update["gateway_max_retries"] = 0  # None is the gateway's own default.
    disabled = [
        f"{name}={getattr(model, name)}"
        for name in ("max_retries", "gateway_max_retries")
        if name in update and (getattr(model, name) or 0) != update[name]
    ]
    return RetriesDisabled(
        model.model_copy(update=update),
        disabled=", ".join(disabled),
        requests=retries + 1,
        waited=policy.explain().waited,
    )


def has_attempts(model: Any) -> bool:
    """Whether this is a model of ours that repeats by itself."""
    if not (hasattr(model, "routes") or hasattr(model, "models_priority_list")):
        return False
    policy = getattr(model, "retry_policy", None)
    retries = getattr(policy, "max_retries", getattr(model, "max_retries", 0))
    return bool(retries) or len(getattr(model, "routes", ())) > 1


def _boto(model: Any, facts: Integration) -> RetriesDisabled:
    """Amazon's: the client tells how often it sends, and cannot be copied."""
    config = getattr(getattr(model, "client", None), "meta", None)
    retries = getattr(getattr(config, "config", None), "retries", None)
    if isinstance(retries, Mapping) and retries.get("total_max_attempts") == 1:
        return RetriesDisabled(model)
    sources = {"aws_access_key_id", "bedrock_api_key"}
    sources |= {"credentials_profile_name", "endpoint_url"}
    # The model has made its client of them; otherwise it may be the user's own.
    is_made = not sources.isdisjoint(model.model_fields_set)
    return _rebuild(model, facts) if is_made else _keep(model, facts)


def _copy_field(model: BaseChatModel, facts: Integration) -> RetriesDisabled:
    """A copy with `max_retries=0`, for a model that reads the field at each call."""
    retries = getattr(model, "max_retries", 0)
    if retries in facts.sends_once:
        return RetriesDisabled(model)
    copy = model.model_copy(update={"max_retries": 0})
    return RetriesDisabled(copy, disabled=f"max_retries={retries}")


def _copy_clients(model: BaseChatModel, facts: Integration) -> RetriesDisabled:
    """A copy whose clients, of a generated SDK, send once over the same connections."""
    clients: dict[str, Any] = {
        name: client
        for name in type(model).model_fields
        if callable(getattr(client := getattr(model, name, None), "with_options", None))
        and isinstance(getattr(client, "max_retries", None), int)
    }
    if not clients:
        return _keep(model, facts)
    retries = max(client.max_retries for client in clients.values())
    if not retries:
        return RetriesDisabled(model)
    once: dict[str, Any] = {
        name: client.with_options(max_retries=0) for name, client in clients.items()
    }
    if "max_retries" in type(model).model_fields:
        once["max_retries"] = 0
    copy = model.model_copy(update=once)
    return RetriesDisabled(copy, disabled=f"max_retries={retries}")


_Way: TypeAlias = Callable[[Any, "Integration"], RetriesDisabled]


@dataclass(frozen=True, slots=True)
class Integration:
    """What is known about the chat models of one package.

    Attributes:
        disable: How the model's own retries are switched off, without `call_options`.
        sends_once: The values of `max_retries` with which it sends each request once.
        hidden_requests: Requests that it sends at most for one call if it has no
            `max_retries`.
        advice: What the user can do where the router cannot switch retries off.
        call_options: Options of each call that switch retries off.
        reports_in: The methods whose whole answers always name a finish reason.
        choices: What its `bind_tools` takes for "none", where that is another word.
        api_choices: Its provider's words for `tool_choice`, where `bind_tools` has none
            of its own. They are options of each call, and a tool is called for by
            offering no other one.
        garbles_streamed_calls: Whether a sync stream repeats the pieces of a tool call,
            so that a call with tools is not streamed.
        ignores_choice: Whether `bind_tools` drops `tool_choice`.
        limits_calls: Whether `parallel_tool_calls` is known to it.
        strict_with_format: Whether tools must be strict if a `response_format` is bound
            with them, but not in the Responses API. Old versions of langchain-openai
            leave that to LangChain's agents.
        no_format_with_tools: A pattern of the models that refuse tools with a format
            for the answer (Google's and Groq's documentation of structured output).
        prefill: A pattern of the models that continue a last message of the assistant.
        prefill_kwargs: What such a message needs in its `additional_kwargs`.
        repeats_prefill: Whether the answer begins with that message again.
    """

    disable: _Way = _copy_clients
    sends_once: tuple[int | None, ...] = (0,)
    hidden_requests: int = 1
    advice: str = "build it with max_retries=0"
    call_options: Mapping[str, Any] = field(default_factory=dict)
    reports_in: tuple[Method, ...] = ("generate", "stream")
    choices: Mapping[str, Any] = field(default_factory=dict)
    api_choices: Mapping[str, str] = field(default_factory=dict)
    garbles_streamed_calls: bool = False
    ignores_choice: bool = False
    limits_calls: bool = True
    strict_with_format: bool = False
    no_format_with_tools: str = ""
    prefill: str = ""
    prefill_kwargs: Mapping[str, Any] = field(default_factory=dict)
    repeats_prefill: bool = False


# Claude 4.6 and later answer a prefill with a 400 ("What's new in Claude 4.6").
_CLAUDE: Final = (
    r"claude-(?:instant|v?[1-3](?!\d)|(?:opus|sonnet|haiku)-[34]"
    r"(?:[-.@](?:[0-5](?!\d)|20\d{6})|(?![-.@\d])))"
)

# Before Gemini 3, a function call with a response MIME type is a 400.
_GEMINI: Final = r"gemini(?!-[3-9])"

INTEGRATIONS: Final[Mapping[str, Integration]] = {
    # Our own models raise by themselves where an end is missing.
    "langchain_retryrouter": Integration(_own_model, reports_in=()),
    "langchain_openai": Integration(
        _with_options, hidden_requests=2, strict_with_format=True
    ),
    # Two clients, of which the SDK's `with_options` reaches only one.
    "langchain_xai": Integration(_rebuild),
    "langchain_together": Integration(_rebuild),
    "langchain_anthropic": Integration(
        _rebuild, choices={"none": {"type": "none"}}, prefill=_CLAUDE
    ),
    "langchain_groq": Integration(
        _rebuild, no_format_with_tools=".", prefill=r"(?i)llama"
    ),
    # The number counts attempts here.
    "langchain_mistralai": Integration(
        _copy_field,
        sends_once=(0, 1),
        prefill=".",
        prefill_kwargs={"prefix": True},
        repeats_prefill=True,
    ),
    "langchain_google_genai": Integration(
        _copy_field,
        sends_once=(0, 1),
        limits_calls=False,
        no_format_with_tools=_GEMINI,
    ),
    "langchain_google_vertexai": Integration(_copy_field, no_format_with_tools=_GEMINI),
    "langchain_fireworks": Integration(_copy_field, sends_once=(0, None)),
    "langchain_aws": Integration(
        _boto,
        hidden_requests=6,
        advice=(
            "build it with max_retries=0, or with"
            ' config=botocore.config.Config(retries={"total_max_attempts": 1})'
        ),
        choices={"none": {"type": "none"}},  # `ChatBedrockConverse` refuses it.
        limits_calls=False,
        prefill=_CLAUDE + r"|amazon\.nova-(?:micro|lite|pro|premier)",
    ),
    "langchain_cohere": Integration(
        call_options={"request_options": {"max_retries": 0}},
        api_choices={"any": "REQUIRED", "none": "NONE"},
        garbles_streamed_calls=True,
        limits_calls=False,
    ),
    "langchain_huggingface": Integration(
        api_choices={"any": "required", "none": "none"}, limits_calls=False
    ),
    "langchain_ollama": Integration(
        ignores_choice=True, limits_calls=False, prefill="."
    ),
    "langchain_litellm": Integration(call_options={"max_retries": 0}),
    # `max_retries=0` leaves the SDK's default in force: up to 3,600 s of retries.
    "langchain_openrouter": Integration(call_options={"retries": None}),
    "langchain_ibm": Integration(
        _watsonx,
        hidden_requests=44,
        advice=(
            "build it with watsonx_client=ibm_watsonx_ai.APIClient(...,"
            " httpx_client=httpx.Client(), async_httpx_client=httpx.AsyncClient())"
        ),
    ),
    # `_generate` drops the reason that `_stream` passes on.
    "langchain_perplexity": Integration(reports_in=("stream",)),
}
"""By the name of the package that a model's class, or a base class of it, is from."""

_ANY_INTEGRATION: Final = Integration()
"""One of LangChain's that is not in the table: of 26, each names finish reasons."""
UNKNOWN_INTEGRATION: Final = Integration(reports_in=())
_NOT_INTEGRATIONS: Final = frozenset(
    {"langchain_core", "langchain_community", "langchain_classic", "langchain_tests"}
)


def integration_of(model: BaseChatModel) -> Integration:
    """What is known about a model, by its own class or the nearest known base class."""
    classes = type(model).__mro__
    # A mixin of our own in a user's class says nothing about its provider.
    own = classes[: classes.index(BaseChatModel)]
    packages = [cls.__module__.partition(".")[0] for cls in own]
    for package in packages:
        if package in INTEGRATIONS:
            return INTEGRATIONS[package]
    for package in packages:
        if package.startswith("langchain_") and package not in _NOT_INTEGRATIONS:
            return _ANY_INTEGRATION
    return UNKNOWN_INTEGRATION


def disable_retries(model: BaseChatModel) -> RetriesDisabled:
    """A model that sends each request once, as far as its package allows."""
    facts = integration_of(model)
    if facts.call_options:
        disabled = ", ".join(f"{name} of each call" for name in facts.call_options)
        return RetriesDisabled(model, disabled=disabled, options=facts.call_options)
    return facts.disable(model, facts)


def disable_embedding_retries(model: Any) -> RetriesDisabled:
    """Embeddings that send each request once, as far as their package allows."""
    packages = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    own_client = type(getattr(model, "client", None)).__module__.startswith("openai.")
    disable: _Way = _keep
    if "langchain_retryrouter" in packages:
        disable = _own_model
    elif "langchain_openai" in packages and own_client:
        disable = _rebuild
    return disable(model, Integration(sends_once=(0, None)))


def embedding_model_of(model: Any) -> str | None:
    """The name of the model that makes the vectors; None if it is not known."""
    if listed := getattr(model, "models_priority_list", None):
        names = {one.name for one in listed}
        return str(names.pop()) if len(names) == 1 else None
    given = getattr(model, "model_fields_set", ())
    if "deployment" in given and "model" not in given:
        return None  # Azure's, whose class has a default for the model.
    for field_name in ("model", "model_name", "model_id", "repo_id"):
        name = getattr(model, field_name, None)
        if isinstance(name, str) and name:
            return name.removeprefix("models/")  # Google's.
    return None


TOKEN_LIMITS: Final[tuple[str, ...]] = (
    *("max_tokens", "max_completion_tokens", "max_output_tokens"),
    *("max_tokens_to_sample", "num_predict", "max_new_tokens"),
)
"""The fields and call options that limit an answer, in LangChain's integrations."""

# In the order of preference: by the names and the aliases of a class's fields.
_SETTINGS: Final[Mapping[str, tuple[str, ...]]] = {
    "api_key": (r"api_key", r"\w+_api_key", r"\w*api_token"),
    "base_url": (
        r"azure_endpoint",
        r"base_url",
        r"\w*(?:api_base|base_url|api_url)",
        r"\w*(?:endpoint_url|server_url|endpoint|host)",
    ),
}


def takes_key_functions(model: BaseChatModel) -> bool:
    """Whether a model's own key may be a function, which its SDK calls each time."""
    name = _field_of(model, "api_key")
    return "Callable" in repr(type(model).model_fields[name].annotation)


def rebuilt(model: BaseChatModel, **settings: Any) -> BaseChatModel:
    """The same model made again, with clients of its own, for another key or address.

    `settings` are `api_key`, `base_url`, or both. No key is in the ValueError for a
    class that has no such field, or cannot be made again.
    """
    name = type(model).__name__
    fields = {_field_of(model, wanted): value for wanted, value in settings.items()}
    try:
        made = _made_again(model, **fields)
    except Exception as error:  # noqa: BLE001 - any class may be given
        # The text may show what was given, and so the key.
        why = type(error).__name__
        if isinstance(error, ValidationError):
            found = "; ".join(e["msg"] for e in error.errors(include_input=False))
            why = redact_text([str(_plain(v)) for v in settings.values()], found)
        wanted = " and ".join(settings)
        msg = f"{name} cannot be made again with another {wanted}: {why}"
        raise ValueError(msg) from None
    for field_name, value in fields.items():
        if _plain(getattr(made, field_name)) != _plain(value):
            msg = f"{name} did not take another {field_name}"
            raise ValueError(msg)
    return made


def endpoint_of(model: BaseChatModel) -> Hashable:
    """What models that differ by their keys only have in common; None if unknown."""
    with contextlib.suppress(ValueError):
        address = getattr(model, _field_of(model, "base_url"))
        name = tracing_params(model).get("ls_model_name")
        return f"{type(model).__qualname__} {name} {address}"
    return None


def credentials_of(model: BaseChatModel) -> Hashable:
    """What no other model of a pool has: the address and the key; None if unknown."""
    with contextlib.suppress(ValueError):
        return endpoint_of(model), _plain(getattr(model, _field_of(model, "api_key")))
    return None


def keys_of(model: Any) -> list[str]:
    """The keys and tokens that a model holds."""
    fields, keys = getattr(type(model), "model_fields", None), []
    for name in fields if isinstance(fields, Mapping) else ():
        with contextlib.suppress(Exception):  # A property may raise anything.
            value = getattr(model, name)
            secret = value.get_secret_value() if isinstance(value, SecretStr) else None
            keys += [secret] if isinstance(secret, str) else []
    return keys


def names_of_keys(models: Sequence[BaseChatModel]) -> list[dict[str, str]]:
    """What `dumps` calls each model's keys: OPENAI_API_KEY_1, ... if they differ."""
    numbers: dict[str, dict[Any, int]] = {}
    secrets = [
        (place, argument, name, _plain(getattr(model, argument, None)))
        for place, model in enumerate(models)
        for argument, name in model.lc_secrets.items()
    ]
    for _, _, name, key in secrets:
        numbers.setdefault(name, {}).setdefault(key, 1 + len(numbers[name]))
    names: list[dict[str, str]] = [{} for _ in models]
    for place, argument, name, key in secrets:
        if len(numbers[name]) > 1:
            names[place][argument] = f"{name}_{numbers[name][key]}"
    return names


def _field_of(model: BaseChatModel, wanted: str) -> str:
    """The field of a model for its key or address; a ValueError if it is not one."""
    fields = type(model).model_fields
    levels = [
        [
            name
            for name, field in fields.items()
            if fits(name) or fits(field.alias or "")
        ]
        for fits in (re.compile(pattern).fullmatch for pattern in _SETTINGS[wanted])
    ]
    used = [[n for n in names if getattr(model, n, None)] for names in levels]
    found: list[str] = next(filter(None, [*used, *levels]), [])
    if len(found) == 1:
        return found[0]
    msg = (
        f"{type(model).__name__} has {'several fields' if found else 'no field'} for"
        f" {wanted}: build a model for each instead, and make routes of one tier of"
        f" them. Its fields are: {', '.join(sorted(fields))}"
    )
    raise ValueError(msg)


def _plain(value: Any) -> Any:
    """A key or an address, to be compared."""
    value = value.get_secret_value() if isinstance(value, SecretStr) else value
    return value if callable(value) else str(value).rstrip("/")


def prefill_of(model: BaseChatModel) -> Mapping[str, Any] | None:
    """The `additional_kwargs` of a message to be continued; None if it would not be."""
    facts = integration_of(model)
    return facts.prefill_kwargs if _is_named(model, facts.prefill) else None


def takes_format_with_tools(model: BaseChatModel) -> bool:
    """Whether one request may have tools and a format for the answer."""
    return not _is_named(model, integration_of(model).no_format_with_tools)


def _is_named(model: BaseChatModel, pattern: str) -> bool:
    name = str(tracing_params(model).get("ls_model_name") or "")
    return bool(pattern and re.search(pattern, name))


def reports_finish_reason(model: BaseChatModel, method: Method) -> bool:
    """Whether an answer of this model that names no finish reason was cut off."""
    facts = integration_of(model)
    is_anthropic = facts is INTEGRATIONS["langchain_anthropic"]
    if is_anthropic and not getattr(model, "stream_usage", True):
        # `ChatAnthropic` passes it on then since version 1.7.10.
        version = getattr(sys.modules.get("langchain_anthropic"), "__version__", "")
        numbers = re.findall(r"\d+", version)[:3]
        return method == "generate" or [*map(int, numbers)] >= [1, 7, 10]
    return method in facts.reports_in


class ToolsRequest(NamedTuple):
    """What a model's `bind_tools` is given, and the options of each call.

    `ignored` is an argument that the integration drops, such as `tool_choice='any'`.
    """

    tools: Sequence[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]
    ignored: str = ""


_CHOICES: Final = {"required": "any", "any": "any", "auto": "auto", "none": "none"}


def read_tool_choice(choice: Any) -> Any:
    """A `tool_choice` of any provider's form as "any", "auto", "none" or a tool's name.

    None if nothing is chosen; a value in an unknown form is returned as it is.
    """
    if isinstance(choice, bool):
        return "any" if choice else None
    if isinstance(choice, str):
        is_word = choice in (choice.lower(), choice.upper())
        return _CHOICES.get(choice.lower(), choice) if is_word else choice
    if not isinstance(choice, Mapping):
        return choice
    kind = choice.get("type")
    if isinstance(kind, str) and kind in _CHOICES:
        return _CHOICES[kind]
    if kind in (None, "function", "tool"):
        inner = choice.get("function") or choice.get("tool") or choice
        if isinstance(inner, Mapping) and isinstance(inner.get("name"), str):
            return inner["name"]
        config = choice.get("function_calling_config")  # Google's.
        if isinstance(config, Mapping):
            names = config.get("allowed_function_names") or []
            mode = str(config.get("mode", "auto")).lower()
            return names[0] if len(names) == 1 else _CHOICES.get(mode, choice)
        if len(choice) == 1 and (word := next(iter(choice))) in _CHOICES:
            return _CHOICES[word]  # Bedrock's.
    return choice


def check_tool_choice(choice: Any, names: Sequence[str | None]) -> None:
    """Refuse a choice, as `read_tool_choice` reads it, of a tool that is not given."""
    wanted = str(name_of_tool(choice)) if isinstance(choice, dict) else choice
    if not isinstance(wanted, str | None):
        msg = f"tool_choice must be a str, bool or dict, not {choice!r}"
        raise TypeError(msg)
    if wanted is not None and wanted not in {"any", "auto", "none", *names}:
        msg = (
            f"tool_choice names {wanted!r}, and the tools are"
            f" {', '.join(map(repr, names))}; or say 'auto', 'any' or 'none'"
        )
        raise ValueError(msg)


def name_of_tool(tool: Any) -> str | None:
    """The name of a function in any form; the type of a provider's own tool."""
    if isinstance(tool, dict):
        inner = tool.get("function")
        named = inner if isinstance(inner, dict) else tool
        return named.get("name") or named.get("title") or tool.get("type")
    name = getattr(tool, "name", None) or getattr(tool, "__name__", None)
    return name if isinstance(name, str) else None


def tools_request(
    model: BaseChatModel, tools: Sequence[Any], kwargs: Mapping[str, Any]
) -> ToolsRequest:
    """What to bind to this model so that `tool_choice` and the like mean the same.

    It is a ValueError if the integration has no way to say it.
    """
    facts, kwargs = integration_of(model), dict(kwargs)
    options: dict[str, Any] = {}
    ignored = ""
    given = kwargs.pop("tool_choice", None)
    choice = read_tool_choice(given)
    if choice is not None and facts.ignores_choice:
        ignored = "" if choice == "auto" else f"tool_choice={given!r}"
    elif choice is not None and facts.api_choices:
        if choice not in _CHOICES:
            tools = [tool for tool in tools if name_of_tool(tool) == choice]
            if not tools:
                msg = f"tool_choice={given!r} names none of the tools"
                raise ValueError(msg)
            choice = "any"
        if choice in facts.api_choices:  # "auto" is the default.
            options["tool_choice"] = facts.api_choices[choice]
    elif choice is not None:
        is_word = isinstance(choice, str)
        kwargs["tool_choice"] = facts.choices.get(choice, choice) if is_word else choice
    if not facts.limits_calls:
        several = kwargs.pop("parallel_tool_calls", None)
        if several is False:
            msg = f"{type(model).__name__} has no parallel_tool_calls=False"
            raise ValueError(msg)
    is_strict = facts.strict_with_format and kwargs.get("response_format")
    if is_strict and tools and not getattr(model, "use_responses_api", False):
        kwargs.setdefault("strict", True)
    return ToolsRequest(tools, kwargs, options, ignored)


_PROVIDERS: Final = {
    "AzureChatOpenAI": "azure_openai",
    "ChatAnthropic": "anthropic",
    "ChatBedrock": "bedrock",
    "ChatBedrockConverse": "bedrock_converse",
    "ChatCohere": "cohere",
    "ChatDeepSeek": "deepseek",
    "ChatFireworks": "fireworks",
    "ChatGoogleGenerativeAI": "google_genai",
    "ChatGroq": "groq",
    "ChatLiteLLM": "litellm",
    "ChatMistralAI": "mistralai",
    "ChatNVIDIA": "nvidia",
    "ChatOllama": "ollama",
    "ChatOpenAI": "openai",
    "ChatOpenRouter": "openrouter",
    "ChatPerplexity": "perplexity",
    "ChatTogether": "together",
    "ChatVertexAI": "google_vertexai",
    "ChatXAI": "xai",
}
"""Of LangChain's `init_chat_model`, by the class that it makes."""


def provider_string(model: BaseChatModel) -> str | None:
    """The model as "provider:model"; None if it has no such string."""
    provider = _PROVIDERS.get(type(model).__name__)
    name = tracing_params(model).get("ls_model_name")
    is_known = type(model).__module__.startswith("langchain_")
    return f"{provider}:{name}" if provider and name and is_known else None


# --- readers and authors of messages ---

# Other names of a provider, in `ls_provider` and in `model_provider`.
_SAME: Final = {
    "amazon_bedrock": "bedrock",
    "azure": "openai",
    "azure_openai": "openai",
    "mistralai": "mistral",
}
_ACCOUNT_FIELDS: Final = re.compile(
    r"api_key|ad_token|api_base|base_url|endpoint|organi[sz]ation|project|region"
    r"|location|account|api_url|server_url|host$"
)


@dataclass(frozen=True, slots=True)
class ReaderFacts:
    """What is known about a provider, or its integration, as a reader of messages.

    Attributes:
        ids: The ids of tool calls that it takes; None if that is not known.
        media_results: Whether results of tools may hold images and documents.
        answers_results: Whether an answer has to follow a tool's result, before the
            user speaks.
        is_account_bound: Whether ids and encrypted thoughts belong to an organisation
            or a region. Signatures of Anthropic's hold on every platform
            (docs.claude.com, "Extended thinking").
        needs_image_urls: Whether images are sent in OpenAI's form only. `ChatCohere`
            drops others, and `ChatHuggingFace` sends them as they are.
        reads_kwargs: Whether tool calls are read from `additional_kwargs` alone.
    """

    ids: re.Pattern[str] | None = None
    media_results: bool = False
    answers_results: bool = False
    is_account_bound: bool = False
    needs_image_urls: bool = False
    reads_kwargs: bool = False


ANY_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,40}")
"""Ids of tool calls that nearly every provider takes."""
_LONG_ID: Final = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_READERS: Final = {
    "anthropic": ReaderFacts(_LONG_ID, media_results=True),
    "bedrock": ReaderFacts(_LONG_ID),
    "bedrock_converse": ReaderFacts(_LONG_ID, media_results=True),
    "cohere": ReaderFacts(needs_image_urls=True),
    "google_genai": ReaderFacts(media_results=True),
    "google_vertexai": ReaderFacts(media_results=True),
    "huggingface": ReaderFacts(needs_image_urls=True),
    "mistral": ReaderFacts(re.compile(r"[a-zA-Z0-9]{9}"), answers_results=True),
    "nvidia": ReaderFacts(reads_kwargs=True),
    "ollama": ReaderFacts(media_results=True),
    "openai": ReaderFacts(re.compile(r"(?s).{1,40}"), is_account_bound=True),
    "perplexity": ReaderFacts(is_account_bound=True),
    "xai": ReaderFacts(is_account_bound=True),
}


@dataclass(frozen=True, slots=True)
class Reader:
    """A model as the reader, or the author, of messages.

    `account` is the key, address and region that it is asked with. `media_results` is
    None if that is known of the provider only.
    """

    provider: str
    account: Hashable = None
    media_results: bool | None = None

    @property
    def facts(self) -> ReaderFacts:
        """What is known of its provider."""
        return _READERS.get(self.provider, ReaderFacts())

    def same_account(self, other: Reader) -> bool:
        """Whether the other one can read this one's ids and thoughts."""
        is_same = not self.facts.is_account_bound or self.account == other.account
        return self.provider == other.provider and is_same


def tracing_params(model: BaseChatModel, /, **kwargs: Any) -> LangSmithParams:
    """What the model's integration tells tracers: provider, model name and options."""
    return model._get_ls_params(**kwargs)  # noqa: SLF001 - an extension point


def family(provider: str) -> str:
    """The one name for a provider that has several."""
    name = provider.lower()
    return _SAME.get(name, name)


def reader_of(model: BaseChatModel) -> Reader:
    """What decides about the messages that `model` can read."""
    found: list[tuple[str, Hashable]] = []
    for name in type(model).model_fields:
        value = getattr(model, name, None) if _ACCOUNT_FIELDS.search(name) else None
        if isinstance(value, SecretStr):
            value = value.get_secret_value()
        if value is not None:
            found.append((name, value if isinstance(value, str) else id(value)))
    named = tracing_params(model).get("ls_provider")
    provider = family(named or type(model).__module__.partition(".")[0])
    if provider == "bedrock" and (
        "converse" in model._llm_type  # noqa: SLF001 - an extension point
        or getattr(model, "beta_use_converse_api", None) is True
    ):
        # Bedrock's two APIs have blocks of their own, and one name for tracers.
        provider = "bedrock_converse"
    media: bool | None = (model.profile or {}).get("image_tool_message")
    if provider == "openai":
        # The profile speaks of the Responses API; both APIs take them from the user.
        media = getattr(model, "use_responses_api", None) is True
    return Reader(provider, tuple(found), media)
