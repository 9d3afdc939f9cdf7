"""What a plan's calls would take, in tokens, money and time: low, expected and high."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from audiobatch.config.prices import AUDIO_IN_TOKENS_PER_S, total_usd
from audiobatch.model import Status, Usage
from audiobatch.planning.ranges import FIGURES, Range, tokens_of_words
from audiobatch.planning.tokens import HEARD, Conversation

if TYPE_CHECKING:
    from collections.abc import Sequence
    from decimal import Decimal

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.config.targets import Target
    from audiobatch.ledger.ledger import Recorded
    from audiobatch.model import Item
    from audiobatch.planning.estimate import ReplySizes
    from audiobatch.planning.review_rules import Rules
    from audiobatch.planning.tokens import TurnTokens

KINDS = ("input_text_tokens", "input_audio_tokens", "output_text_tokens", "output_audio_tokens")


@dataclass(slots=True)
class Amounts:
    """Tokens of all calls that would be made, counted while the queue streams past.

    Attributes:
        now_s: epoch seconds, at which earlier replies' audio ids are still good or are not.
        tokens: by kind.
        written_down_s: seconds of recordings that their sessions write down.
    """

    now_s: float
    calls: int = 0
    tokens: dict[str, Range] = field(default_factory=lambda: dict.fromkeys(KINDS, Range()))
    written_down_s: Range = field(default_factory=Range)

    def add(self, one: Recorded, item: Item, rules: Rules, sizes: ReplySizes, spec: JobSpec) -> None:
        """Every turn of an item that is to be sent."""
        conversation = Conversation(item=item, sizes=sizes, spec=spec, now_s=self.now_s)
        for turn in item.turns:
            outcome = one.outcomes.get(turn.number)
            if not rules.stands(one, turn):
                tokens = conversation.asked(turn)
                self._count(tokens)
                self.calls += conversation.parts.expected if turn.number == 1 else 1
                if spec.transcription_model and turn.number == 1:
                    self.written_down_s += HEARD * conversation.heard_s
                conversation.replied(turn, tokens)
            elif outcome is None or outcome.status is not Status.SUCCEEDED:
                return  # nothing can follow it
            else:
                conversation.stands(turn, outcome)

    def _count(self, tokens: TurnTokens) -> None:
        for kind in KINDS:
            added: Range = getattr(tokens, kind)
            self.tokens[kind] += added

    def usage(self, figure: str) -> Usage:
        """All calls' tokens, one of the figures of each."""
        return Usage(**{kind: round(getattr(of, figure)) for kind, of in self.tokens.items()})

    def cost(self, targets: Sequence[Target]) -> dict[str, Decimal] | None:
        """Low at the cheapest place, high at the dearest, expected at the first in priority."""
        costs = {name: [self._cost(name, one) for one in targets] for name in FIGURES}
        known = {name: [cost for cost in of if cost is not None] for name, of in costs.items()}
        if any(len(known[name]) < len(targets) for name in known):
            return None
        return {"low": min(known["low"]), "expected": known["expected"][0], "high": max(known["high"])}

    def _cost(self, figure: str, target: Target) -> Decimal | None:
        heard, written = self.written_down_s * AUDIO_IN_TOKENS_PER_S, tokens_of_words(self.written_down_s)
        words = Usage(
            input_audio_tokens=round(getattr(heard, figure)),
            output_text_tokens=round(getattr(written, figure)),
        )
        made = words if self.written_down_s.high else None
        return total_usd((target.cost_usd(self.usage(figure)), target.transcription_usd(made)))

    def time_s(self, targets: Sequence[Target], spec: JobSpec) -> float | None:
        """How long the quotas that are given make it; None where none is."""
        tokens = sum(of.expected for of in self.tokens.values())
        rpm = [one.rpm for one in targets]
        tpm = [one.tpm for one in targets]
        times = []
        if all(rpm):
            times.append(self.calls * 60 / sum(one or 0 for one in rpm))
        if all(tpm):
            times.append(tokens * 60 / sum(one or 0 for one in tpm))
        return max(times) if times else None
