"""`Speech` by eSpeak NG: the choice of voice and language, a cache, and the way to the engine's process."""

import asyncio
import importlib.util
import shutil
import tempfile
import unicodedata
from collections import Counter, OrderedDict
from pathlib import Path

from audiobatch_emulator.engine_process import EnginePool
from audiobatch_emulator.errors import EmulatorError
from audiobatch_emulator.voices import Voice, voice_named

CACHE_BYTES = 64 * 2**20  # 23 minutes of speech
SHORTEST_BYTES = 2 * 4_800  # 0.2 s: what an empty text sounds like

# eSpeak NG fails on data paths of more than about 158 characters; its own names take up to 60 of them.
LONGEST_FOLDER = 90

# The first word of a letter's Unicode name tells its script. Of scripts that several languages share, the
# one with the most speakers.
_LANGUAGE_OF_SCRIPT = {
    "CYRILLIC": "ru",
    "GREEK": "el",
    "ARABIC": "ar",
    "HEBREW": "he",
    "DEVANAGARI": "hi",
    "BENGALI": "bn",
    "TAMIL": "ta",
    "GEORGIAN": "ka",
    "ARMENIAN": "hy",
    "HANGUL": "ko",
    "CJK": "cmn",
    "HIRAGANA": "ja",
    "KATAKANA": "ja",
}
_LETTERS_LOOKED_AT = 500


class EspeakSpeech:
    """Speaks with one eSpeak NG process. What was said lately is answered from memory."""

    def __init__(self) -> None:
        if importlib.util.find_spec("espeakng_loader") is None:
            raise EmulatorError(
                "the emulator's voice is not installed: pip install 'audiobatch[local]', "
                "or use --speech tone, which hums instead of speaking"
            )
        self._engine = EnginePool("audiobatch_emulator.espeak_engine", processes=1)
        self._folder: Path | None = None
        self._said: OrderedDict[tuple[str, Voice], bytes] = OrderedDict()
        self._said_bytes = 0

    @property
    def pids(self) -> tuple[int, ...]:
        """The engine's process id, once it runs."""
        return self._engine.pids

    async def say(self, text: str, voice: str) -> bytes:
        """See `Speech.say`."""
        speaker = voice_named(voice)
        key = (text, speaker)
        if key in self._said:
            self._said.move_to_end(key)
            return self._said[key]
        if self._folder is None:
            self._folder = _short_folder()
        header = {
            "folder": str(self._folder),
            "name": speaker.name,
            "variant": speaker.variant(),
            "language": language_of(text) or speaker.language,
            "words_per_minute": speaker.words_per_minute,
        }
        _, pcm = await self._engine.ask(header, text.encode("utf-8", "replace"))
        pcm = pcm.ljust(SHORTEST_BYTES, b"\0")
        self._remember(key, pcm)
        return pcm

    async def aclose(self) -> None:
        """See `Speech.aclose`."""
        await self._engine.aclose()
        if self._folder is not None:
            await asyncio.to_thread(shutil.rmtree, self._folder, ignore_errors=True)
            self._folder = None

    def _remember(self, key: tuple[str, Voice], pcm: bytes) -> None:
        if key in self._said:  # two asked for it at once
            return
        self._said[key] = pcm
        self._said_bytes += len(pcm)
        while self._said_bytes > CACHE_BYTES:
            _, forgotten = self._said.popitem(last=False)
            self._said_bytes -= len(forgotten)


def language_of(text: str) -> str | None:
    """Returns the language, in eSpeak NG's words, of a text mostly in another script than Latin; else None."""
    letters = [letter for letter in text if letter.isalpha()][:_LETTERS_LOOKED_AT]
    scripts = Counter(unicodedata.name(letter, "").split(" ")[0].split("-")[0] for letter in letters)
    languages: Counter[str | None] = Counter()
    for script, count in scripts.items():
        languages[_LANGUAGE_OF_SCRIPT.get(script)] += count
    if languages["ja"]:  # Japanese is mostly written in the characters that it shares with Chinese
        languages["ja"] += languages.pop("cmn", 0)
    return languages.most_common(1)[0][0] if languages else None


def _short_folder() -> Path:
    """Makes a new folder under a short path.

    Raises:
        EmulatorError: there is no temporary folder with a short enough path.
    """
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108 - mkdtemp makes it safe
        if len(parent) <= LONGEST_FOLDER and Path(parent).is_dir():
            return Path(tempfile.mkdtemp(prefix="audiobatch-voice-", dir=parent))
    raise EmulatorError(
        f"the path of the temporary folder is too long for the speech engine "
        f"({len(tempfile.gettempdir())} characters, {LONGEST_FOLDER} are possible): set TMPDIR to a short one"
    )
