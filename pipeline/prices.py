"""What tokens cost. The table is `prices.toml` beside this module: dated, sourced, and meant to be edited.

Money is `Decimal`, and an unknown price stays unknown (None): it is never shown as 0.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from datetime import date

    from pipeline.model import Usage

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
    """US dollars per million tokens; `cached_in` None: cached input costs what other input does."""

    text_in: Decimal
    text_out: Decimal
    audio_in: Decimal
    audio_out: Decimal
    cached_in: Decimal | None = None
    retires: date | None = None

    def cost_usd(self, usage: Usage) -> Decimal:
        """What a reply with this usage costs.

        Cached tokens are taken off the text first and then off the audio: the service reports one count.
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


@lru_cache
def price_table(path: Path = _TABLE) -> dict[str, Price]:
    """Prices by model label.

    Raises:
        ConfigError: the file cannot be read or a price is no number.
    """
    try:
        models = tomllib.loads(path.read_text(encoding="utf-8"))["models"]
        return {
            model: Price(
                retires=entry.get("retires"),
                **{
                    name: Decimal(str(entry[name]))
                    for name in ("text_in", "text_out", "audio_in", "audio_out", "cached_in")
                    if name in entry
                },
            )
            for model, entry in models.items()
        }
    except (OSError, tomllib.TOMLDecodeError, KeyError, TypeError, ArithmeticError) as failed:
        raise ConfigError(f"price table {path}: {failed}") from failed


def price_of(model: str) -> Price | None:
    """The model's price; a dated snapshot (`gpt-audio-2025-08-28`) costs what its family does."""
    table = price_table()
    return table.get(model) or table.get(_SNAPSHOT_DATE.sub("", model))


def cost_usd(model: str, usage: Usage | None) -> Decimal | None:
    """What a reply cost; None where the model's price or the usage is not known."""
    price = price_of(model)
    return None if price is None or usage is None else price.cost_usd(usage)
