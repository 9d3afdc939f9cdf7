"""Decide which recordings and replies still have to be transcribed, for the plan and for workers.

Transcriptions do not decide a reply, so that they are in no fingerprint: a job that asks for them later adds them
to existing results and sends no request for a reply again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from audiobatch.model import PartKind, SourceKind, Status

if TYPE_CHECKING:
    from collections.abc import Set as AbstractSet

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.model import Outcome, Source

#: Longest recording in one transcription. The GPT models accept 1400 s; such files are smaller than 25 MB, too.
#: Source: github.com/murtaza-nasir/speakr/issues/168, github.com/chidiwilliams/buzz/issues/381 (2026-11).
MAX_TRANSCRIPTION_S = 1200.0
#: A transcript that the ledger has: item, turn, version, and kind of part.
TranscriptKey = tuple[str, int, int, str]


def transcription_models(spec: JobSpec) -> tuple[str, ...]:
    """Return the models, or Azure's deployments, that transcribe for the job."""
    named = (spec.transcribe_inputs, spec.verify_speech)
    return tuple(dict.fromkeys(model for model in named if model))


def missing_transcripts(
    outcome: Outcome, source: Source, spec: JobSpec, existing: AbstractSet[TranscriptKey]
) -> tuple[PartKind, ...]:
    """Return which transcripts a turn's result still lacks."""
    if outcome.status is not Status.SUCCEEDED:
        return ()
    wanted = []
    has_recording = source.kind is SourceKind.RECORDING and outcome.turn == 1
    if spec.transcribe_inputs and has_recording and not outcome.input_transcript:
        wanted.append(PartKind.INPUT)
    if spec.verify_speech and outcome.audio and outcome.transcript and outcome.word_error_rate is None:
        wanted.append(PartKind.SPEECH)
    key = (outcome.item_id, outcome.turn, outcome.version)
    return tuple(kind for kind in wanted if (*key, kind.value) not in existing)
