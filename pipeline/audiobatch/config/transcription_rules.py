"""Which words are still to be written down: one rule for the plan and the workers.

Words do not decide a reply, so that they are in no fingerprint: asking for them later adds them to results that are
there, and buys no reply again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from audiobatch.model import PartKind, SourceKind, Status

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.model import Outcome, Source

#: The GPT models take up to 1400 s; the files of such parts stay below 25 MB too.
#: Source: github.com/murtaza-nasir/speakr/issues/168, github.com/chidiwilliams/buzz/issues/381 (2026-11).
LONGEST_S = 1200.0
#: Whose words are written down, as the ledger has it: item, turn, version, and which words.
Written = tuple[str, int, int, str]


def transcription_models(spec: JobSpec) -> tuple[str, ...]:
    """The models, or Azure's deployments, that the job has words written down by."""
    named = (spec.transcribe_inputs, spec.verify_speech)
    return tuple(dict.fromkeys(model for model in named if model))


def wanted_of(
    outcome: Outcome, source: Source, spec: JobSpec, written: AbstractSet[Written]
) -> tuple[PartKind, ...]:
    """The words that a turn's result still lacks."""
    if outcome.status is not Status.SUCCEEDED:
        return ()
    wanted = []
    spoken_to = source.kind is SourceKind.RECORDING and outcome.turn == 1
    if spec.transcribe_inputs and spoken_to and not outcome.input_transcript:
        wanted.append(PartKind.INPUT)
    if spec.verify_speech and outcome.audio and outcome.transcript and outcome.word_error_rate is None:
        wanted.append(PartKind.SPEECH)
    key = (outcome.item_id, outcome.turn, outcome.version)
    return tuple(kind for kind in wanted if (*key, kind.value) not in written)
