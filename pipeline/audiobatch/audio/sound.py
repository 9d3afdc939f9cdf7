"""An opened recording, whatever reads it; and what to say of bytes that are none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

from audiobatch.audio.riff import is_wav

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np
    from numpy.typing import NDArray

#: Frames a block: about a second, so that the work a block outweighs the call.
BLOCK_FRAMES = 32_768


class NotAudio(ValueError):
    """No reader takes the bytes; the message says what they seem to be."""


class Sound(Protocol):
    """An opened recording.

    Attributes:
        promised_s: duration that the header claims, None where it claims none.
        reached_s: how far into what is promised the bytes go, by their time stamps, counted while `blocks` runs;
            0 where they have none.
        span_s: from the first moment of the sound to its last, by its time stamps, counted likewise; more than
            its samples last where some are missing between.
        ending: whether the container shows its end: `unmarked` may be cut short, `cut` is.
        damaged: packets that could not be decoded, counted while `blocks` runs.
        sizes_true: a WAV whose header needs no repair; True for the other formats.
    """

    container: str
    codec: str
    sample_rate_hz: int
    channels: int
    promised_s: float | None
    ending: Literal["whole", "unmarked", "cut"]
    damaged: int
    sizes_true: bool

    @property
    def reached_s(self) -> float: ...

    @property
    def span_s(self) -> float: ...

    def blocks(self, first_frame: int = 0) -> Iterator[NDArray[np.float32]]:
        """The samples in order, once: frames x channels of float32, full scale ±1, never an empty block.

        Args:
            first_frame: where to begin. Plain WAVs go there at once; other formats are decoded from their
                beginning, because after a seek a decoder's count of frames is not certain.
        """


def describe_bytes(head: bytes, size_bytes: int) -> str:
    """What bytes that are no recording seem to be, for a person."""
    if not size_bytes:
        return "it is empty (0 bytes)"
    if b"\0" not in head:
        text = head.decode("utf-8", errors="ignore")
        if len(text.encode()) >= len(head) - 3 and all(
            char.isprintable() or char in "\r\n\t\f" for char in text
        ):
            return "it is text, not audio"
    if head[4:8] == b"ftyp":
        return "cut short: its index (moov) is missing"
    if head.startswith((b"fLaC", b"OggS", b"FORM", b"\x1aE\xdf\xa3")) or is_wav(head):
        return "its beginning is that of a recording, but its header is cut or damaged"
    return "no audio in any format known here"
