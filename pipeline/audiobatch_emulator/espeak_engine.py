"""The speech engine's process: eSpeak NG through ctypes. Run as `python -m
audiobatch_emulator.espeak_engine`.

eSpeak NG is GPL-3; this process is the only one that loads it. Its traps, and what is done about them:

- A library that has spoken does not speak the same way again (its flutter and noise run on): it is loaded
afresh for
  each text, and given back afterwards.
- It is not thread-safe: one text at a time, in one thread. - It fails on long data paths, and finds
variants only inside its data: each process makes a small data folder of
  its own under a short path, linked to the installed one.
- It ignores a variant that it does not find: each is written before its first use.
"""

import _ctypes
import contextlib
import ctypes
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from audiobatch_emulator.engine_child import Alive, Answer, serve

SPEECH_RATE_HZ = 24_000

# Source: espeak-ng 1.52, src/include/espeak-ng/speak_lib.h.
_SYNCHRONOUS = 2
_DO_NOT_EXIT_ON_FAILURE = 0x8000
_RATE_PARAMETER = 1
_VOLUME_PARAMETER = 2
_VOLUME = 60  # of 100 by default, at which the louder synthesisers clip
_UTF8 = 1
_PAUSE_AT_END = 0x1000
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class EspeakError(Exception):
    """eSpeak NG refused what it was asked."""


class Engine:
    """Speaks. `folder` is where its data folder is made and removed again."""

    def __init__(self) -> None:
        self._data_parent: Path | None = None

    def answer(self, header: dict[str, Any], payload: bytes, alive: Alive) -> Answer:
        """Speaks `payload` (UTF-8) with the voice in the header; mono s16le at 24 000 Hz, perhaps empty."""
        if self._data_parent is None:
            self._data_parent = _make_data_folder(Path(header["folder"]) / str(os.getpid()))
        variant = self._data_parent / "espeak-ng-data" / "voices" / "!v" / header["name"]
        if not variant.is_file():
            variant.write_text(header["variant"], encoding="ascii")
        voice = f"{header['language']}+{header['name']}"
        samples, rate_hz = _spoken(payload, voice, header["words_per_minute"], self._data_parent, alive)
        return {"rate_hz": SPEECH_RATE_HZ}, _at_speech_rate(samples, rate_hz)

    def clean_up(self) -> None:
        """Removes the data folder, and its parent when nobody else uses that."""
        if self._data_parent is not None:
            shutil.rmtree(self._data_parent, ignore_errors=True)
            with contextlib.suppress(OSError):
                self._data_parent.parent.rmdir()


def _make_data_folder(parent: Path) -> Path:
    """Mirrors the installed data under `parent`, with a variants folder of our own."""
    import espeakng_loader

    installed, mirror = Path(espeakng_loader.get_data_path()), parent / "espeak-ng-data"
    mirror.mkdir(parents=True)
    for entry in installed.iterdir():
        if entry.name != "voices":
            _link_or_copy(entry, mirror / entry.name)
    (mirror / "voices" / "!v").mkdir(parents=True)
    return parent


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        target.symlink_to(source, target_is_directory=source.is_dir())
    except (OSError, NotImplementedError):  # Windows, without the privilege
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copyfile(source, target)


def _spoken(
    text: bytes, voice: str, words_per_minute: int, data_parent: Path, alive: Alive
) -> tuple[NDArray[np.int16], int]:
    """Returns the samples and their rate in Hz."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    try:
        rate_hz = library.espeak_Initialize(
            _SYNCHRONOUS, 0, os.fsencode(data_parent), _DO_NOT_EXIT_ON_FAILURE
        )
        if rate_hz <= 0:
            raise EspeakError(f"eSpeak NG does not start with its data in {data_parent}")
        pieces: list[bytes] = []

        def receive(samples: Any, count: int, events: Any) -> int:
            if samples and count > 0:
                pieces.append(ctypes.string_at(samples, 2 * count))
            alive()
            return 0

        callback = _CALLBACK(receive)  # referred to until the library has ended
        library.espeak_SetSynthCallback(callback)
        if library.espeak_SetVoiceByName(voice.encode("ascii")) != 0:
            raise EspeakError(f"eSpeak NG has no voice {voice}")
        library.espeak_SetParameter(_RATE_PARAMETER, words_per_minute, 0)
        library.espeak_SetParameter(_VOLUME_PARAMETER, _VOLUME, 0)
        buffer = ctypes.create_string_buffer(text.replace(b"\0", b" "))
        flags = _UTF8 | _PAUSE_AT_END
        library.espeak_Synth(buffer, ctypes.c_size_t(len(buffer)), 0, 0, 0, flags, None, None)
        library.espeak_Terminate()
        return np.frombuffer(b"".join(pieces), np.int16), rate_hz
    finally:
        _unload(library)


def _unload(library: ctypes.CDLL) -> None:
    """Gives the library back, which ctypes itself never does."""
    if sys.platform == "win32":
        _ctypes.FreeLibrary(library._handle)  # noqa: SLF001 - the only way to it
    else:
        _ctypes.dlclose(library._handle)  # noqa: SLF001


def _at_speech_rate(samples: NDArray[np.int16], rate_hz: int) -> bytes:
    """Resamples to 24 000 Hz, mono s16le; in floats, since soxr dithers integers."""
    if len(samples) == 0:
        return b""
    resampled = soxr.resample(samples.astype(np.float32), rate_hz, SPEECH_RATE_HZ)
    pcm: bytes = np.clip(np.round(resampled), -32768, 32767).astype("<i2").tobytes()
    return pcm


if __name__ == "__main__":
    engine = Engine()
    serve(engine.answer, engine.clean_up)
