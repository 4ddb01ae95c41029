"""Azure's address, deployment, API version and credentials."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable
from typing import Any, Final

from pydantic import Field

from langchain_retryrouter._openai.client import MissingResource
from langchain_retryrouter.llms._connection import (
    OpenAIConnection,
    Secret,
    first_env,
    secret_env,
    secret_value,
)

_USER_AGENT: Final = {"User-Agent": "langchain-retryrouter-python-azure-openai"}


class AzureConnection(OpenAIConnection):
    """The fields that Azure's form of the API needs."""

    azure_endpoint: str | None = Field(
        default_factory=first_env("AZURE_OPENAI_ENDPOINT")
    )
    """The resource, such as `https://example-resource.azure.openai.com/`. From
    `AZURE_OPENAI_ENDPOINT` if it is not given."""
    deployment_name: str | None = Field(default=None, alias="azure_deployment")
    """The deployment that answers; `model_name` if it is not given."""
    openai_api_version: str | None = Field(
        default_factory=first_env("OPENAI_API_VERSION"), alias="api_version"
    )
    """The version of the API. From `OPENAI_API_VERSION` if it is not given."""
    openai_api_key: Secret | None = Field(
        default_factory=secret_env("AZURE_OPENAI_API_KEY", "OPENAI_API_KEY"),
        alias="api_key",
    )
    """From `AZURE_OPENAI_API_KEY`, then `OPENAI_API_KEY`, if it is not given."""
    openai_api_base: str | None = Field(
        default_factory=first_env("OPENAI_API_BASE"), alias="base_url"
    )
    """The address up to `/openai` or the deployment; better give `azure_endpoint`."""
    azure_ad_token: Secret | None = Field(
        default_factory=secret_env("AZURE_OPENAI_AD_TOKEN")
    )
    """A Microsoft Entra token. From `AZURE_OPENAI_AD_TOKEN` if it is not given."""
    azure_ad_token_provider: Callable[[], str] | None = None
    """Returns an Entra token; called before each request, async ones too if there is no
    `azure_ad_async_token_provider`."""
    azure_ad_async_token_provider: Callable[[], Awaitable[str]] | None = None
    """Returns an Entra token; awaited before each async request."""
    openai_api_type: str | None = Field(
        default_factory=lambda: first_env("OPENAI_API_TYPE")() or "azure"
    )
    """Kept for old code; it has no effect."""
    validate_base_url: bool = True
    """Whether an `openai_api_base` that is not an Azure address is made one."""

    def _check_account(self) -> None:
        if not (self.azure_endpoint or self.openai_api_base):
            msg = (
                "no address: pass azure_endpoint=..., or set the variable"
                " AZURE_OPENAI_ENDPOINT"
            )
            raise ValueError(msg)
        if not self.openai_api_version:
            msg = (
                "no API version: pass api_version=..., or set the variable"
                " OPENAI_API_VERSION"
            )
            raise ValueError(msg)
        if not any(self._credentials(is_async=kind) for kind in (False, True)):
            msg = (
                "no credentials: pass api_key=..., azure_ad_token=... or"
                " azure_ad_token_provider=..., or set the variable AZURE_OPENAI_API_KEY"
                " or AZURE_OPENAI_AD_TOKEN"
            )
            raise ValueError(msg)

    def _choose_account(self) -> None:
        """Choose one address and one identity: the SDK refuses two.

        A given field goes before an environment variable.
        """
        self._choose("openai_api_base", "azure_endpoint")
        self._choose("azure_ad_token_provider", "azure_ad_token")
        if self._is_given("openai_api_key") and not self._is_given("azure_ad_token"):
            self.azure_ad_token = None
        base = self.openai_api_base
        if not (base and self.validate_base_url):
            return
        address = base
        if "/openai" not in address:
            address = address.rstrip("/") + "/openai"
        if self.deployment_name and self.deployment_name not in address:
            address = f"{address.rstrip('/')}/deployments/{self.deployment_name}"
        if address != base:
            warnings.warn(
                f"openai_api_base {base!r} is taken as {address!r}; give"
                " azure_endpoint=... and azure_deployment=... instead",
                stacklevel=5,
            )
        self.openai_api_base = address

    def _choose(self, name: str, other: str) -> None:
        if getattr(self, name) is None or getattr(self, other) is None:
            return
        if self._is_given(name) and self._is_given(other):
            msg = f"{name} and {other} are both given: choose one"
            raise ValueError(msg)
        setattr(self, other if self._is_given(name) else name, None)

    def _is_given(self, name: str) -> bool:
        return name in self.model_fields_set and getattr(self, name) is not None

    @property
    def _sdk_class(self) -> str:
        return "AzureOpenAI"

    def _make_client(self) -> Any:
        if not self._credentials(is_async=False):
            return MissingResource(
                "no credentials for sync calls: pass azure_ad_token_provider=..."
                " in addition to azure_ad_async_token_provider"
            )
        return super()._make_client()

    def _client_options(self, *, is_async: bool) -> dict[str, Any]:
        options = {
            **super()._client_options(is_async=is_async),
            "api_version": self.openai_api_version,
            "default_headers": {**_USER_AGENT, **(self.default_headers or {})},
        }
        if self.azure_endpoint:
            options["azure_endpoint"] = self.azure_endpoint
            if self.deployment_name:
                options["azure_deployment"] = self.deployment_name
        return options

    def _credentials(self, *, is_async: bool) -> dict[str, Any]:
        provider: Any = self.azure_ad_token_provider
        if is_async and self.azure_ad_async_token_provider is not None:
            provider = self.azure_ad_async_token_provider
        if provider is not None:
            return {"azure_ad_token_provider": provider}
        if self.azure_ad_token is not None:
            return {"azure_ad_token": secret_value(self.azure_ad_token)}
        if self.openai_api_key is not None:
            return super()._credentials(is_async=is_async)
        return {}
