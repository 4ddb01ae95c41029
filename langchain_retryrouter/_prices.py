"""What tokens cost: by a route's own prices, or as `genai-prices` lists them.

`genai-prices` is the extra "prices"; it is imported when a price is first looked up,
and only the list that it comes with is read. What is not known has no cost, not 0.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, TypeGuard

from langchain_retryrouter.failures import Failure

_DIGITS: Final = 12
_MOST_TOKENS: Final = 10**12  # More is no count.
# OpenAI's names of counts, and LangChain's.
_LANGCHAINS: Final = {
    "prompt_tokens": "input_tokens",
    "prompt_tokens_details": "input_token_details",
    "cached_tokens": "cache_read",
    "completion_tokens": "output_tokens",
    "completion_tokens_details": "output_token_details",
    "reasoning_tokens": "reasoning",
}
# LangChain's names of details, and those of genai-prices.
_DETAILS: Final = {
    "input_token_details": {
        "cache_read": "cache_read_tokens",
        "cache_creation": "cache_write_tokens",
        "ephemeral_5m_input_tokens": "cache_write_5m_tokens",
        "ephemeral_1h_input_tokens": "cache_write_1h_tokens",
        "audio": "input_audio_tokens",
    },
    "output_token_details": {"audio": "output_audio_tokens"},
}


def usage_of(usage: Mapping[str, Any]) -> dict[str, Any]:
    """The usage of an answer in LangChain's names, whichever names it has."""
    own = {n: usage_of(v) if isinstance(v, Mapping) else v for n, v in usage.items()}
    return {_LANGCHAINS[n]: v for n, v in own.items() if n in _LANGCHAINS} | own


def tokens_of(usage: Mapping[str, Any]) -> tuple[int, int] | None:
    """Tokens of the prompt and of the answer; None if the counts make no sense."""
    read, written = usage.get("input_tokens", 0), usage.get("output_tokens", 0)
    if not (_is_count(read) and _is_count(written)):
        return None
    # Thoughts are paid as an answer; xAI and others count them in the total only.
    details = usage.get("output_token_details")
    thoughts = details.get("reasoning") if isinstance(details, Mapping) else None
    extra = thoughts if _is_count(thoughts) else 0
    comes_on_top = usage.get("total_tokens") == read + written + extra
    return read, written + extra if comes_on_top else written


def _is_count(value: Any) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= _MOST_TOKENS


@dataclass(frozen=True, slots=True)
class FixedPrices:
    """Prices for a million tokens; cached tokens of a prompt cost as much as others."""

    input: float
    output: float

    def cost(self, usage: Mapping[str, Any]) -> float | None:
        """Money for these tokens; None if the counts make no sense."""
        tokens = tokens_of(usage)
        return None if tokens is None else self.money(*tokens)

    def money(self, read: int, written: int) -> float:
        """Money for tokens of a prompt and of an answer."""
        money = read * self.input + written * self.output
        return round(money / 1_000_000, _DIGITS)


@dataclass(frozen=True, slots=True)
class ListedPrices:
    """The prices, in US dollars, of a model of a provider.

    `plain` are those of a model whose tokens cost the same in any number at any time.
    """

    model: str
    provider: str
    plain: FixedPrices | None = None

    def cost(self, usage: Mapping[str, Any]) -> float | None:
        """Money for these tokens, those from a cache too; None if it is not known."""
        tokens = tokens_of(usage)
        if tokens is None:
            return None
        counts = {"input_tokens": tokens[0], "output_tokens": tokens[1]}
        details: dict[str, int] = {}
        for name, names in _DETAILS.items():
            given = usage.get(name)
            if not isinstance(given, Mapping):
                continue
            found = {theirs: given.get(ours) for ours, theirs in names.items()}
            details |= {n: c for n, c in found.items() if c and _is_count(c)}
        if self.plain is not None and not details:
            return self.plain.money(*tokens)
        parts = details.get("cache_write_5m_tokens", 0)
        parts += details.get("cache_write_1h_tokens", 0)
        if parts:  # Some count them in the sum, too.
            written = max(parts, details.get("cache_write_tokens", 0))
            details["cache_write_tokens"] = written
        genai_prices = importlib.import_module("genai_prices")
        for extra in (details, {}):  # Some servers count what is not in the sum.
            try:
                price = genai_prices.calc_price(
                    genai_prices.Usage(**counts | extra),
                    self.model,
                    provider_id=self.provider,
                )
            except (LookupError, ValueError):
                continue
            return round(float(price.total_price), _DIGITS)
        return None


Prices = FixedPrices | ListedPrices


@functools.cache
def load_list() -> bool:
    """Read the list now, and not in a call; whether it is installed."""
    return listed_prices("gpt-4o", "openai") is not None


@functools.lru_cache(maxsize=1024)
def listed_prices(
    model: str | None, provider: str | None, url: str | None = None
) -> ListedPrices | None:
    """The prices of a model; None if `genai-prices` is missing, or does not know it.

    An address of a known provider counts more than the integration: many providers are
    asked in the way of OpenAI. An unknown address is taken for a proxy's.
    """
    try:
        genai_prices = importlib.import_module("genai_prices")
    except ImportError:
        return None
    none = genai_prices.Usage()
    asked: list[dict[str, str]] = [{"provider_api_url": url}] if url else []
    asked += [{"provider_id": provider}] if provider else []
    for of in asked if model else ():
        try:
            found = genai_prices.calc_price(none, model, **of)
        except LookupError as error:
            if "provider_api_url" in of and "find model" in str(error):
                return None  # The provider is known, and has no such model.
            continue
        # Plain are prices for tokens alone, without steps, and the same at any hour.
        price = found.model_price
        rates = [price.input_mtok, price.output_mtok]
        is_plain = found.model.prices is price and not found.total_price
        is_plain = is_plain and all(type(rate) is Decimal for rate in rates)
        plain = FixedPrices(*map(float, rates)) if is_plain else None
        return ListedPrices(str(model), found.provider.id, plain)
    return None


def cost_of_attempt(
    prices: Prices | None,
    failure: Failure | None,
    usage: Mapping[str, Any] | None,
    estimate: Mapping[str, Any] | None = None,
) -> tuple[float, bool] | None:
    """What an attempt cost, and whether that is an estimate; None if it is not known.

    Providers do not charge for what they refuse with a status. `estimate` are the
    tokens of an attempt that says nothing of them, such as one that timed out.
    """
    if usage:
        total = usage.get("total_cost")  # Of LangChain: 0 for an answer of a cache.
        if isinstance(total, int | float):
            return float(total), False
    if prices is None:
        return None
    if usage and (cost := prices.cost(usage)) is not None:
        return cost, False
    if failure is not None and not failure.may_have_run:
        return 0.0, False
    if failure is not None and failure.status_code is not None:
        return 0.0, True
    cost = prices.cost(estimate) if estimate else None
    return None if cost is None else (cost, True)


def write_costs(
    log: dict[str, Any], costs: Iterable[tuple[float, bool] | None] = ()
) -> None:
    """Write into a log what its lines cost, and the sum, if each cost is known."""
    for line, cost in zip(log["attempts"], costs, strict=False):
        if cost is not None:
            line["cost"] = cost[0]
            if cost[1]:
                line["cost_is_estimate"] = True
    lines = [line for line in log["attempts"] if "attempt" in line]
    if lines and all("cost" in line for line in lines):
        log["cost"] = round(sum(line["cost"] for line in lines), _DIGITS)
        if any(line.get("cost_is_estimate") for line in lines):
            log["cost_is_estimate"] = True
