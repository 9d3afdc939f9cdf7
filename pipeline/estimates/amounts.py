"""What a plan's calls would take, in tokens, money and time: low, expected and high."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

from pipeline.estimates.estimate import CHARACTERS_PER_S, MESSAGE_TOKENS
from pipeline.estimates.worst_case import BOUND_TOKENS
from pipeline.inputs.sound_settings import parts_of, sent_s
from pipeline.model import Usage
from pipeline.prices import AUDIO_IN_TOKENS_PER_S, AUDIO_OUT_TOKENS_PER_S, CHARACTERS_PER_TEXT_TOKEN

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.estimates.estimate import ReplySizes
    from pipeline.jobspec import JobSpec
    from pipeline.model import Item
    from pipeline.redo import Rules
    from pipeline.store.ledger import Recorded
    from pipeline.targets import Target

KINDS = ("input_text_tokens", "input_audio_tokens", "output_text_tokens", "output_audio_tokens")
_LEAST_SPOKEN_S = 0.3
_LEAST_TEXT_TOKENS = 1
_LOW_INPUT = 0.7
_HIGH_INPUT = 1.4
#: Silences may be trimmed, parts may overlap, and a second that was begun may be counted whole.
_HEARD = {"low": 0.5, "expected": 1.0, "high": 1.15}
#: Words in a recording, as shares of what speech of its length usually has.
_WORDS = {"low": 0.0, "expected": 1.0, "high": 2.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """An amount that is not known yet."""

    low: float
    expected: float
    high: float


@dataclass(slots=True)
class Amounts:
    """Tokens of all calls that would be made, counted while the queue streams past.

    Attributes:
        written_down_s: seconds of recordings that their sessions write down; low, expected and high.
    """

    calls: int = 0
    low: Counter[str] = field(default_factory=Counter)
    expected: Counter[str] = field(default_factory=Counter)
    high: Counter[str] = field(default_factory=Counter)
    written_down_s: Counter[str] = field(default_factory=Counter)

    def add(self, one: Recorded, item: Item, rules: Rules, sizes: ReplySizes, spec: JobSpec) -> None:
        """Every turn of an item that is to be sent."""
        heard_s = sent_s(one.source, spec)
        longest = item.max_completion_tokens or BOUND_TOKENS
        text = len(item.system)
        spoken = {"low": 0.0, "expected": 0.0, "high": 0.0}
        for turn in item.turns:
            text += len(turn.text)
            reply_s = len(turn.text) / CHARACTERS_PER_S if spec.read_aloud else sizes.reply_s(heard_s)
            if turn.wants_audio:
                audio_out = min(reply_s * AUDIO_OUT_TOKENS_PER_S, longest * 0.8)
                text_out = reply_s * CHARACTERS_PER_S / CHARACTERS_PER_TEXT_TOKEN
                least = _LEAST_SPOKEN_S * AUDIO_OUT_TOKENS_PER_S
                out = {
                    "low": (1.0, least),
                    "expected": (text_out, audio_out),
                    "high": (longest * 0.3, longest),
                }
            else:
                text_out = min(sizes.text_tokens, longest)
                out = {"low": (_LEAST_TEXT_TOKENS, 0.0), "expected": (text_out, 0.0), "high": (longest, 0.0)}
            if not rules.stands(one, turn):
                parts = parts_of(one.source, spec).expected if turn.number == 1 else 1
                self.calls += parts
                if spec.transcription_model and turn.number == 1:
                    self.written_down_s.update({name: heard_s * share for name, share in _HEARD.items()})
                texts = parts * (text / CHARACTERS_PER_TEXT_TOKEN + MESSAGE_TOKENS * 2 * turn.number)
                for name, share in (("low", _LOW_INPUT), ("expected", 1.0), ("high", _HIGH_INPUT)):
                    into: Counter[str] = getattr(self, name)
                    into["input_text_tokens"] += texts * share  # type: ignore[assignment]
                    into["input_audio_tokens"] += (
                        heard_s * _HEARD[name] * AUDIO_IN_TOKENS_PER_S + spoken[name]
                    )  # type: ignore[assignment]
                    into["output_text_tokens"] += parts * out[name][0]  # type: ignore[assignment]
                    into["output_audio_tokens"] += parts * out[name][1]  # type: ignore[assignment]
            for name in spoken:
                spoken[name] += out[name][1]

    def usage(self, name: str) -> Usage:
        of: Counter[str] = getattr(self, name)
        return Usage(**{kind: round(of[kind]) for kind in KINDS})

    def cost(self, targets: Sequence[Target]) -> dict[str, Decimal] | None:
        """Low at the cheapest place, high at the dearest, expected at the first in priority."""
        costs = {name: [self._cost(name, one) for one in targets] for name in ("low", "expected", "high")}
        known = {name: [cost for cost in of if cost is not None] for name, of in costs.items()}
        if any(len(known[name]) < len(targets) for name in known):
            return None
        return {"low": min(known["low"]), "expected": known["expected"][0], "high": max(known["high"])}

    def _cost(self, name: str, target: Target) -> Decimal | None:
        heard_s = self.written_down_s[name]
        words = Usage(
            input_audio_tokens=round(heard_s * AUDIO_IN_TOKENS_PER_S),
            output_text_tokens=round(heard_s * CHARACTERS_PER_S / CHARACTERS_PER_TEXT_TOKEN * _WORDS[name]),
        )
        costs = (target.cost_usd(self.usage(name)), target.transcription_usd(words if heard_s else None))
        return None if None in costs else sum((cost for cost in costs if cost is not None), Decimal(0))

    def time_s(self, targets: Sequence[Target], spec: JobSpec) -> float | None:
        """How long the quotas that are given make it; None where none is."""
        tokens = sum(self.expected.values())
        rpm = [one.rpm for one in targets]
        tpm = [one.tpm for one in targets]
        times = []
        if all(rpm):
            times.append(self.calls * 60 / sum(one or 0 for one in rpm))
        if all(tpm):
            times.append(tokens * 60 / sum(one or 0 for one in tpm))
        return max(times) if times else None
