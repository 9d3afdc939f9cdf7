"""The emulator's voice: text in, speech out.

`real` speaks with eSpeak NG, in a process of its own; `tone` hums, without any engine.
"""

from typing import Literal, Protocol

from audiobatch_emulator.tones import ToneSpeech

SAMPLE_RATE_HZ = 24_000


class Speech(Protocol):
    """Speaks. The same text and voice give the same bytes, always, also after a restart."""

    async def say(self, text: str, voice: str) -> bytes:
        """Speaks the text: mono s16le PCM at 24 000 Hz, never empty.

        A voice that is not known is given one of its own. Text in any script and of any length is spoken as
        well as an English speaker can.

        Raises:
            EngineCrashed: the engine died or hung on this text; the next request gets a fresh one.
        """
        ...

    async def aclose(self) -> None:
        """Ends the engine's process, and removes what it left on disk."""
        ...


def open_speech(kind: Literal["real", "tone"]) -> Speech:
    """Opens a voice; its process starts with the first request.

    Raises:
        EmulatorError: `real`, and the extra `local` is not installed.
    """
    if kind == "tone":
        return ToneSpeech()
    from audiobatch_emulator.espeak_speech import EspeakSpeech

    return EspeakSpeech()
