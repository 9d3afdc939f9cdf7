"""What is done to a reply before it is saved, where the job asks for it; in one place and one order."""

from __future__ import annotations

from dataclasses import dataclass

from audiobatch.audio.clips import fade, trim_edges
from audiobatch.audio.encode import encode_reply
from audiobatch.audio.loudness import normalize
from audiobatch.config.jobspec import LEAST_LUFS, MOST_LUFS


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """How replies are finished; as it stands, not at all.

    Attributes:
        loudness_lufs: integrated loudness to aim at; None leaves it.
        trim_silence: take off the silence before and after the speech.
    """

    loudness_lufs: float | None = None
    trim_silence: bool = False
    fade_in_s: float = 0.0
    fade_out_s: float = 0.0

    def __post_init__(self) -> None:
        if self.loudness_lufs is not None and not LEAST_LUFS <= self.loudness_lufs <= MOST_LUFS:
            raise ValueError(
                f"a loudness of {self.loudness_lufs} LUFS; from {LEAST_LUFS:g} to {MOST_LUFS:g} is possible"
            )
        if self.fade_in_s < 0 or self.fade_out_s < 0:
            raise ValueError("a fade cannot be shorter than nothing")

    @property
    def changes_samples(self) -> bool:
        return bool(self.loudness_lufs is not None or self.trim_silence or self.fade_in_s or self.fade_out_s)


#: What the service encodes by itself. Source: OpenAI API reference, chat completions, `audio.format` (2026-11).
SERVICE_FORMATS = frozenset({"wav", "pcm16", "mp3", "flac", "opus", "aac"})


def asked_format(format: str, how: Finish) -> str:  # noqa: A002 - the service's own word
    """The format to ask the service for: the job's own, but a WAV where samples are worked on or encoded here.

    An mp3 that is decoded, changed and encoded again would lose twice.
    """
    return "wav" if how.changes_samples or (format and format not in SERVICE_FORMATS) else format


def finish_reply(wav: bytes, format: str, how: Finish) -> bytes:  # noqa: A002 - the service's own word
    """A reply trimmed, brought to its loudness, faded and encoded: in this order, so that silence does not count
    as quiet speech, and fades stand at the edges that are heard.

    Args:
        wav: the reply as a WAV, its sizes may be wrong.
        format: one of `encode.REPLY_FORMATS`.

    Raises:
        ValueError: it cannot be decoded, or the format is unknown.
    """
    if how.trim_silence:
        wav = trim_edges(wav)
    if how.loudness_lufs is not None:
        wav = normalize(wav, target_lufs=how.loudness_lufs)
    if how.fade_in_s or how.fade_out_s:
        wav = fade(wav, in_s=how.fade_in_s, out_s=how.fade_out_s)
    return encode_reply(wav, format)
