"""What writing words down would take: calls and money of `--transcribe-inputs` and `--verify-speech` in a plan."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from audiobatch.audio.split import count_parts
from audiobatch.config.prices import AUDIO_IN_TOKENS_PER_S, AUDIO_OUT_TOKENS_PER_S, total_usd
from audiobatch.config.transcription_rules import LONGEST_S, wanted_of
from audiobatch.model import PartKind, SourceKind, Usage
from audiobatch.planning.ranges import FIGURES, Range, tokens_of_words
from audiobatch.planning.tokens import Conversation
from audiobatch.planning.worst_case import BOUND_TOKENS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from collections.abc import Set as AbstractSet
    from decimal import Decimal

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.config.targets import Target
    from audiobatch.config.transcription_rules import Written
    from audiobatch.ledger.ledger import Recorded
    from audiobatch.model import Item, Outcome, Source, Turn
    from audiobatch.planning.estimate import ReplySizes
    from audiobatch.planning.review_rules import Rules

#: Seconds of sound, as shares of what is expected.
_SOUND = Range(0.3, 1.0, 1.15)


@dataclass(slots=True)
class WordAmounts:
    """Counted while the plan's queue streams past.

    Attributes:
        calls: that write words down, if none has to be made again.
        written: whose words are there already.
    """

    calls: int = 0
    written: AbstractSet[Written] = frozenset()
    _audio: dict[str, Range] = field(default_factory=dict)
    _text: dict[str, Range] = field(default_factory=dict)

    def add(self, one: Recorded, item: Item, rules: Rules, sizes: ReplySizes, spec: JobSpec) -> None:
        """The words of every turn's result, those that are there and those that will be."""
        conversation = Conversation(item=item, sizes=sizes, spec=spec, now_s=0.0)
        for turn in item.turns:
            there = one.outcomes.get(turn.number) if rules.stands(one, turn) else None
            if there is not None:
                lacks = wanted_of(there, one.source, spec, self.written)
            else:
                lacks = () if rules.stands(one, turn) else _will_lack(turn, one.source, spec)
            if spec.transcribe_inputs and PartKind.INPUT in lacks:
                in_session = there is None and spec.transcription_model is not None
                self._count_input(spec.transcribe_inputs, conversation, in_session=in_session)
            if spec.verify_speech and PartKind.SPEECH in lacks:
                spoken_s = _spoken_s(there, conversation, turn)
                self._count(spec.verify_speech, spoken_s, _calls(spoken_s.expected))

    def _count_input(self, model: str, conversation: Conversation, *, in_session: bool) -> None:
        """A recording's words; where its session writes them down too, only if that has found none."""
        parts, heard_s = conversation.parts, conversation.heard_s
        calls = parts.expected if heard_s <= parts.expected * LONGEST_S else count_parts(heard_s).expected
        low_s = 0.0 if in_session else heard_s
        self._count(model, Range(low_s, low_s, heard_s + parts.repeated_s), calls, are_likely=not in_session)

    def _count(self, model: str, sound_s: Range, calls: int, *, are_likely: bool = True) -> None:
        self.calls += calls if are_likely else 0
        heard_s = sound_s * _SOUND
        words = tokens_of_words(sound_s).at_most(calls * BOUND_TOKENS)
        self._audio[model] = self._audio.get(model, Range()) + heard_s * AUDIO_IN_TOKENS_PER_S
        self._text[model] = self._text.get(model, Range()) + words

    def cost(self, targets: Sequence[Target]) -> dict[str, Decimal] | None:
        """By low, expected and high; None where a price is not known.

        Args:
            targets: where words are written down, named by their models.
        """
        prices = {one.name: one for one in targets}
        costs = {
            name: total_usd(prices[model].cost_usd(self._usage(model, name)) for model in self._audio)
            for name in FIGURES
        }
        known = {name: cost for name, cost in costs.items() if cost is not None}
        return known if len(known) == len(costs) else None

    def _usage(self, model: str, figure: str) -> Usage:
        return Usage(
            input_audio_tokens=math.ceil(getattr(self._audio[model], figure)),
            output_text_tokens=math.ceil(getattr(self._text[model], figure)),
        )


def _will_lack(turn: Turn, source: Source, spec: JobSpec) -> tuple[PartKind, ...]:
    """The words that a turn's result will lack once it is there."""
    lacks_input = spec.transcribe_inputs and turn.number == 1 and source.kind is SourceKind.RECORDING
    lacks_speech = spec.verify_speech and turn.wants_audio
    return tuple(
        kind for kind, lacks in ((PartKind.INPUT, lacks_input), (PartKind.SPEECH, lacks_speech)) if lacks
    )


def _calls(sound_s: float) -> int:
    """How many calls write a reply down."""
    return count_parts(sound_s).expected if sound_s > LONGEST_S else 1


def _spoken_s(there: Outcome | None, conversation: Conversation, turn: Turn) -> Range:
    """How long a reply is that is there, or will be."""
    if there is not None and there.audio_duration_s is not None:
        return Range.exactly(there.audio_duration_s)
    longest = conversation.item.max_completion_tokens or BOUND_TOKENS
    longest_s = conversation.calls(turn).high * longest / AUDIO_OUT_TOKENS_PER_S
    return Range(0.0, min(conversation.reply_s(turn), longest_s), longest_s)
