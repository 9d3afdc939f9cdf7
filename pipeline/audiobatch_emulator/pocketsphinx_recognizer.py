"""`Recognizer` by PocketSphinx: the way to the recognizers' processes, and a memory of what was heard."""

import hashlib
import importlib.util
from collections import OrderedDict
from typing import Any

from audiobatch_emulator.decoding import Undecodable
from audiobatch_emulator.engine_process import EnginePool
from audiobatch_emulator.errors import EmulatorError
from audiobatch_emulator.hearing import CACHED_HEARINGS, HeardWord, Hearing

# The recognizer reports between pieces only, and one of thirty seconds takes ten; minutes on a machine with
# much to do.
QUIET_LIMIT_S = 300.0


class PocketsphinxRecognizer:
    """Hears with as many recordings at once as it has processes. What was heard lately is remembered."""

    def __init__(self, *, processes: int) -> None:
        if importlib.util.find_spec("pocketsphinx") is None:
            raise EmulatorError(
                "the emulator's recognizer is not installed: pip install 'audiobatch[local]', "
                "or use --speech tone, which measures recordings without understanding them"
            )
        self._engines = EnginePool(
            "audiobatch_emulator.pocketsphinx_engine", processes=processes, quiet_limit_s=QUIET_LIMIT_S
        )
        self._heard: OrderedDict[bytes, Hearing] = OrderedDict()

    @property
    def pids(self) -> tuple[int, ...]:
        """The process ids of the recognizers that run now."""
        return self._engines.pids

    async def hear(self, audio: bytes) -> Hearing:
        """See `Recognizer.hear`."""
        digest = hashlib.sha256(audio).digest()
        if digest in self._heard:
            self._heard.move_to_end(digest)
            return self._heard[digest]
        answer, _ = await self._engines.ask({}, audio)
        if "undecodable" in answer:
            raise Undecodable(answer["undecodable"])
        hearing = _hearing(answer)
        self._heard[digest] = hearing
        while len(self._heard) > CACHED_HEARINGS:
            self._heard.popitem(last=False)
        return hearing

    async def aclose(self) -> None:
        """See `Recognizer.aclose`."""
        await self._engines.aclose()


def _hearing(answer: dict[str, Any]) -> Hearing:
    words = tuple(
        HeardWord(text=text, start_s=start_s, end_s=end_s, confidence=confidence)
        for text, start_s, end_s, confidence in answer["words"]
    )
    return Hearing(
        text=" ".join(word.text for word in words),
        confidence=sum(word.confidence for word in words) / len(words) if words else 0.0,
        duration_s=answer["duration_s"],
        level_dbfs=answer["level_dbfs"],
        silence_share=answer["silence_share"],
        pitch_hz=answer["pitch_hz"],
        words=words,
    )
