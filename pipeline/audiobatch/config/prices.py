"""Prices of tokens. The table is `prices.toml` beside this module: dated, with sources, and meant to be edited.

Money is `Decimal`. A price that is not known is None, never 0.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from audiobatch.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import date

    from audiobatch.model import Usage

_TABLE = Path(__file__).with_name("prices.toml")
_MILLION = Decimal(1_000_000)
_SNAPSHOT_DATE = re.compile(r"-\d{4}-\d{2}-\d{2}$")

#: Audio tokens a second of sound. Source: developers.openai.com/api/docs/guides/realtime-costs (2026-11): one
#: token per 100 ms of the user's audio, one per 50 ms of the assistant's. Chat completions' usage agrees.
AUDIO_IN_TOKENS_PER_S = 10
AUDIO_OUT_TOKENS_PER_S = 20
#: English text, roughly. Source: developers.openai.com, "What are tokens".
CHARACTERS_PER_TEXT_TOKEN = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars per million tokens; `cached_in` None: cached input costs as much as other input."""

    text_in: Decimal
    text_out: Decimal
    audio_in: Decimal
    audio_out: Decimal
    cached_in: Decimal | None = None
    retires: date | None = None

    def cost_usd(self, usage: Usage) -> Decimal:
        """Return the cost of a reply.

        The service reports one count of cached tokens; it is taken off the text first, then off the audio.
        """
        text, audio, cached = usage.input_text_tokens, usage.input_audio_tokens, usage.cached_tokens
        if self.cached_in is None:
            cached = 0
        cached = min(cached, text + audio)
        cached_text = min(cached, text)
        total = (
            self.text_in * (text - cached_text)
            + self.audio_in * (audio - (cached - cached_text))
            + (self.cached_in or Decimal(0)) * cached
            + self.text_out * usage.output_text_tokens
            + self.audio_out * usage.output_audio_tokens
        )
        return total / _MILLION


def total_usd(costs: Iterable[Decimal | None]) -> Decimal | None:
    """Return the sum of costs; None where one of them is not known."""
    total = Decimal(0)
    for cost in costs:
        if cost is None:
            return None
        total += cost
    return total


@dataclass(frozen=True, slots=True, kw_only=True)
class PriceTable:
    """Prices by model, and by provider where a provider's price for a model differs."""

    as_of: date | None
    models: Mapping[str, Price]
    by_provider: Mapping[str, Mapping[str, Price]]

    def of(self, model: str, provider: str = "") -> Price | None:
        """Return a model's price; a dated snapshot (`gpt-audio-2025-08-28`) has that of its family."""
        family = _SNAPSHOT_DATE.sub("", model)
        own = self.by_provider.get(provider, {})
        return own.get(model) or own.get(family) or self.models.get(model) or self.models.get(family)


@lru_cache
def price_table(path: Path = _TABLE) -> PriceTable:
    """Read a price table.

    Raises:
        ConfigError: the file cannot be read, or a price is not a number.
    """
    try:
        read = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=Decimal)
        return PriceTable(
            as_of=read.get("as_of"),
            models=_prices(read.get("models", {})),
            by_provider={name: _prices(read.get(name, {})) for name in ("azure", "openai")},
        )
    except OSError as failed:
        raise ConfigError(f"price table {path}: cannot be read ({failed.strerror})") from failed
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failed:
        raise ConfigError(f"price table {path}: not valid TOML: {failed}") from failed
    except (AttributeError, KeyError, TypeError, ArithmeticError) as failed:
        raise ConfigError(
            f'price table {path}: each model needs text_in, text_out, audio_in and audio_out, numbers as "2.50"'
        ) from failed


def _prices(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, Price]:
    return {
        model: Price(
            retires=entry.get("retires"),
            **{
                name: Decimal(str(entry[name]))
                for name in ("text_in", "text_out", "audio_in", "audio_out", "cached_in")
                if name in entry
            },
        )
        for model, entry in entries.items()
    }


def price_of(model: str, provider: str = "", *, prices: str | None = None) -> Price | None:
    """Return a model's price at a provider, from the user's table (`prices`) or ours; None: it is not known."""
    return price_table(Path(prices) if prices else _TABLE).of(model, provider)
