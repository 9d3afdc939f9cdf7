"""The emulator's recognizer: a recording in, what was heard and what was measured out.

`real` recognizes English speech with PocketSphinx, in processes of its own: a stand-in for the model's
hearing, by far not as good. `tone` measures only, without any engine.
"""

import asyncio
import functools
import hashlib
from typing import Literal, Protocol

from audiobatch_emulator.decoding import Undecodable, decode
from audiobatch_emulator.engine_process import EngineCrashed
from audiobatch_emulator.hearing import CACHED_HEARINGS, Hearing
from audiobatch_emulator.measuring import Measurer

__all__ = ["EngineCrashed", "Recognizer", "Undecodable", "open_recognizer"]


class Recognizer(Protocol):
    """Listens. The same recording gives the same hearing, always."""

    async def hear(self, audio: bytes) -> Hearing:
        """Hears one recording, in any container that FFmpeg reads.

        Raises:
            Undecodable: these bytes are not audio.
            EngineCrashed: the engine died or hung on this recording; the next request gets a fresh one.
        """
        ...

    async def aclose(self) -> None:
        """Ends the engine's processes."""
        ...


def open_recognizer(kind: Literal["real", "tone"], *, processes: int = 2) -> Recognizer:
    """Open a recognizer; each of its processes starts when it is first needed.

    Raises:
        EmulatorError: `real`, and the extra `local` is not installed.
    """
    if kind == "tone":
        return MeasuringRecognizer()
    from audiobatch_emulator.pocketsphinx_recognizer import PocketsphinxRecognizer

    return PocketsphinxRecognizer(processes=processes)


class MeasuringRecognizer:
    """`Recognizer` without recognition: the text is always empty, the measured facts are true."""

    def __init__(self) -> None:
        self._measured = functools.lru_cache(maxsize=CACHED_HEARINGS)(_Once)

    async def hear(self, audio: bytes) -> Hearing:
        """Measures in a thread; a recording heard before is answered from memory."""
        once = self._measured(hashlib.sha256(audio).digest())
        if once.hearing is None:
            once.hearing = await asyncio.to_thread(measure, audio)
        return once.hearing

    async def aclose(self) -> None:
        """Does nothing: nothing is open."""


class _Once:
    """A place in the cache, filled when the measuring is done."""

    def __init__(self, digest: bytes) -> None:
        self.hearing: Hearing | None = None


def measure(audio: bytes) -> Hearing:
    """Returns the measured facts of a recording, without words.

    Raises:
        Undecodable: these bytes are not audio.
    """
    measurer = Measurer()
    for block in decode(audio):
        measurer.add(block)
    measured = measurer.result()
    return Hearing(
        text="",
        confidence=0.0,
        duration_s=measured.duration_s,
        level_dbfs=measured.level_dbfs,
        silence_share=measured.silence_share,
        pitch_hz=measured.pitch_hz,
        words=(),
    )
