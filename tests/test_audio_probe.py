"""Probing: every kind of recording is read right, every defect refused in words, in little memory."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import struct
import subprocess
import sys
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray

from audiobatch.audio import decode
from audiobatch.audio import probe as probe_module
from audiobatch.audio.convert import prepare
from audiobatch.audio.measure import measure
from audiobatch.audio.probe import (
    Probed,
    is_plain_wav,
    is_silent,
    looks_like_audio,
    probe,
    probe_many,
    sendable_as_is,
)
from audiobatch.audio.probe_pool import ProbePool
from audiobatch.audio.probe_worker import answer
from audiobatch.errors import InputError
from audiobatch.model import Media
from tests import audio_corpus as corpus
from tests.narrowing import present

FULL = os.environ.get("AUDIOBATCH_FULL") == "1"
MOST_MEMORY_MB = 300


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> list[corpus.Case]:
    return corpus.make(tmp_path_factory.mktemp("corpus"))


def in_a_child(script: str, *arguments: str) -> tuple[str, float]:
    """Runs Python with this project; its output, and by how many MB its peak lay above its idle memory."""
    measured = (
        "import sys\n"
        "def status(key):\n"
        "    text = open('/proc/self/status').read()\n"
        "    return int(text.split(key + ':')[1].split()[0])\n"
        "import av, numpy, soundfile, soxr\n"
        "idle = status('VmRSS')\n"
        f"{script}\n"
        "print('above', status('VmHWM') - idle)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", measured, *arguments], capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stderr
    output, _, above_kb = done.stdout.rpartition("above ")
    return output, int(above_kb) / 1024


def test_the_corpus_has_at_least_sixty_files(cases: list[corpus.Case]) -> None:
    assert len(cases) >= 60


def test_every_recording_is_read_right_or_refused_with_its_reason(cases: list[corpus.Case]) -> None:
    wrong = []
    for case in cases:
        try:
            media = probe(case.path).media
        except InputError as refusal:
            if not case.refusal or not re.search(case.refusal, refusal.message):
                wrong.append(f"{case.path.name}: refused: {refusal.message}")
            continue
        facts = (media.container, media.sample_rate_hz, media.channels)
        if case.refusal:
            wrong.append(f"{case.path.name}: should be refused ({case.refusal}), is {media}")
        elif facts != (case.container, case.sample_rate_hz, case.channels):
            wrong.append(f"{case.path.name}: {media}")
        elif abs(media.duration_s - case.duration_s) > case.slack_s + 1e-9:
            wrong.append(f"{case.path.name}: {media.duration_s} s")
        elif bool(case.note) != bool(media.notes) or case.note not in " ".join(media.notes):
            wrong.append(f"{case.path.name}: notes {media.notes}")
        elif not -32 < present(media.level_dbfs) < -18 or not 0.2 < present(media.silence_share) < 0.7:
            wrong.append(f"{case.path.name}: level {media.level_dbfs}, silence {media.silence_share}")
    assert wrong == []


def test_every_recording_that_is_read_can_be_prepared_and_measures_the_same(
    cases: list[corpus.Case],
) -> None:
    for case in (case for case in cases if not case.refusal):
        media = probe(case.path).media
        part = prepare(case.path, media)
        clip = measure(part.data, part.format)
        assert clip.duration_s == pytest.approx(media.duration_s, abs=0.06), case.path.name
        assert part.duration_s == pytest.approx(media.duration_s, abs=0.06), case.path.name
        if media.channels == 1:
            assert clip.rms_dbfs == pytest.approx(media.level_dbfs, abs=0.6), case.path.name


def test_joined_mp3s_are_longer_than_their_first_header_says_and_that_is_no_fault(tmp_path: Path) -> None:
    low, high = (
        corpus.by_ffmpeg(corpus.speech(6, 44_100), 44_100, "mp3", "libmp3lame", bits_per_s=rate)
        for rate in (32_000, 256_000)
    )
    path = tmp_path / "joined.mp3"
    for data in (low + high, corpus.uncounted(low) + corpus.uncounted(high)):
        path.write_bytes(data)
        assert probe(path).media.duration_s == pytest.approx(12, abs=0.15)


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("mark", [b"Info", b"VBRI"])
def test_an_mp3_that_counts_its_frames_is_known_to_be_cut(
    rate: int, channels: int, mark: bytes, tmp_path: Path
) -> None:
    sound = np.stack([corpus.speech(4, rate)] * channels, axis=1)
    whole = corpus.by_ffmpeg(sound, rate, "mp3", "libmp3lame", kind="s16p", bits_per_s=64_000)
    if mark == b"VBRI":
        whole = _marked_as_by_fraunhofer(whole)
    path = tmp_path / "x.mp3"
    cover = b"ID3\x04\0\0" + bytes((0, 6, 13, 32)) + bytes(100_000)
    for front in (b"", cover):
        path.write_bytes(front + whole)
        assert probe(path).media.duration_s == pytest.approx(4, abs=0.15)
        path.write_bytes(front + whole[: len(whole) * 3 // 4])
        with pytest.raises(InputError, match=r"cut short: the header promises 4\.. s, [23]\.. s are there"):
            probe(path)


def _marked_as_by_fraunhofer(mp3: bytes) -> bytes:
    """The same mp3 with its count of frames in another encoder's mark."""
    at = mp3.index(b"Info")
    first = mp3.rindex(b"\xff", 0, at)
    mark = bytes(32) + b"VBRI" + bytes(10) + mp3[at + 8 : at + 12]
    return mp3[: first + 4] + mark + mp3[first + 4 + len(mark) :]


def test_an_mp3_that_grows_louder_is_as_long_as_its_samples_not_as_its_first_frames_suggest(
    tmp_path: Path,
) -> None:
    late = np.concatenate((np.zeros(5 * 22_050, np.float32), corpus.speech(2, 22_050)))
    path = tmp_path / "late.mp3"
    path.write_bytes(_uncounted_vbr(late, 22_050))
    assert probe(path).media.duration_s == pytest.approx(7, abs=0.1)


def _uncounted_vbr(samples: NDArray[np.float32], rate_hz: int) -> bytes:
    """An mp3 of variable bit rate without a header frame; its silences take a tenth of its speech."""
    mp3 = corpus.wav(samples, rate_hz, "MPEG_LAYER_III", "MP3")
    assert b"Xing" in mp3[:200]
    return mp3.replace(b"Xing", bytes(4), 1)


@pytest.mark.parametrize(
    ("muxer", "codec", "kind"),
    [("webm", "libopus", "s16"), ("ipod", "aac", "fltp"), ("asf", "wmav2", "fltp")],
)
def test_a_pause_in_the_time_stamps_is_noted_and_not_taken_for_a_cut(
    muxer: str, codec: str, kind: str, tmp_path: Path
) -> None:
    sound = corpus.speech(8, 48_000)
    path = tmp_path / f"call.{muxer}"
    path.write_bytes(
        corpus.by_ffmpeg(sound, 48_000, muxer, codec, kind=kind, lost_s=(3, 6), bits_per_s=96_000)
    )
    media = probe(path).media
    assert media.duration_s == pytest.approx(5, abs=0.15)
    (note,) = (note for note in media.notes if "time stamps" in note)
    assert re.search(r"by its time stamps (2\.9|3\.0) s are missing within it", note)


def test_a_wav_of_blocks_that_was_written_to_a_pipe_promises_nothing(tmp_path: Path) -> None:
    whole = corpus.by_ffmpeg(corpus.speech(8, 44_100), 44_100, "wav", "adpcm_ima_wav", kind="s16p")
    path = tmp_path / "pipe.wav"
    path.write_bytes(corpus.with_sizes(_to_a_pipe(whole), riff=0xFFFFFFFF, sound=0xFFFFFFFF))
    media = probe(path).media
    assert media.duration_s == pytest.approx(8, abs=0.1)
    assert media.notes == ("its header does not say how long it is, or says it wrongly",)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"cut short: the header promises 8\.. s, 4\.. s are there"):
        probe(path)


def _to_a_pipe(wav: bytes) -> bytes:
    """The same WAV as FFmpeg 5 writes it to a pipe: no count of samples, and too low a rate of bytes."""
    return wav[:28] + (16_000).to_bytes(4, "little") + wav[32:].replace(b"fact", b"JUNK", 1)


def test_the_hash_is_of_the_files_bytes_however_the_reader_jumps_about(cases: list[corpus.Case]) -> None:
    for case in (case for case in cases if not case.refusal):
        probed = probe(case.path)
        assert probed.sha256 == hashlib.sha256(case.path.read_bytes()).hexdigest(), case.path.name
        assert probed.size_bytes == case.path.stat().st_size
        assert probed.mtime_ns == case.path.stat().st_mtime_ns


def test_the_whole_corpus_is_read_in_little_memory(cases: list[corpus.Case]) -> None:
    folder = cases[0].path.parent
    output, above_mb = in_a_child(
        "from pathlib import Path\n"
        "from audiobatch.audio.probe import probe_many\n"
        "from audiobatch.audio.convert import prepare\n"
        "for path, found in probe_many(sorted(Path(sys.argv[1]).iterdir()), 1):\n"
        "    if hasattr(found, 'media'):\n"
        "        prepare(path, found.media)\n"
        "print('done')",
        str(folder),
    )
    assert "done" in output
    assert above_mb < MOST_MEMORY_MB


def test_workers_find_what_one_process_finds_in_the_same_order(cases: list[corpus.Case]) -> None:
    paths = [case.path for case in cases]
    alone = [(path, str(found)) for path, found in probe_many(paths, 1)]
    spread = [(path, str(found)) for path, found in probe_many(iter(paths), 2)]
    assert spread == alone
    assert [path for path, _ in spread] == paths


def test_workers_end_when_the_caller_loses_interest(cases: list[corpus.Case]) -> None:
    results = cast("Generator[Any]", probe_many((case.path for _ in range(100) for case in cases), 2))
    next(results)
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < 5


def test_names_that_are_no_text_reach_the_workers(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9\n.wav"))
    path.write_bytes(corpus.wav(corpus.speech(1, 16_000), 16_000))
    [(given, found)] = list(probe_many([path], 2))
    assert given == path
    assert isinstance(found, Probed)
    assert found.media.duration_s == 1.0


def test_what_cannot_be_opened_is_refused_not_waited_for(tmp_path: Path) -> None:
    folder = tmp_path / "folder.wav"
    folder.mkdir()
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    for path, reason in ((folder, "regular"), (pipe, "regular"), (tmp_path / "gone.wav", "No such file")):
        with pytest.raises(InputError, match=reason):
            probe(path)


def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "locked.wav"
    path.write_bytes(corpus.wav(corpus.speech(1, 16_000), 16_000))
    path.chmod(0)
    tmp_path.chmod(0o755)
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from audiobatch.audio.probe import probe\n"
        "import soundfile, numpy\n"
        "path = os.open(sys.argv[1].rpartition('/')[0], os.O_RDONLY)\n"
        "os.fchdir(path)\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        "try: probe(Path('locked.wav'))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "InputError it cannot be read: Permission denied"


def test_a_playlist_is_not_followed_whatever_its_name(tmp_path: Path) -> None:
    inner = tmp_path / "inner.mp3"
    inner.write_bytes(corpus.wav(corpus.speech(1, 16_000), 16_000, "MPEG_LAYER_III", "MP3"))
    for name, text in (
        ("list.m3u8", f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{inner}\n#EXT-X-ENDLIST\n"),
        ("concat.mp3", f"ffconcat version 1.0\nfile '{inner}'\n"),
    ):
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(InputError, match="text"):
            probe(path)


def test_silence_is_known_from_soft_speech(tmp_path: Path) -> None:
    def media(samples: NDArray[np.float32]) -> Media:
        path = tmp_path / "x.wav"
        path.write_bytes(corpus.wav(samples, 16_000))
        return probe(path).media

    hiss = np.random.default_rng(1).standard_normal(48_000).astype(np.float32)
    assert is_silent(media(np.zeros(48_000, np.float32)))
    assert is_silent(media(hiss * 10 ** (-70 / 20)))
    assert not is_silent(media(corpus.speech(3, 16_000, level=0.01)))
    one_word = np.zeros(16_000 * 60, np.float32)
    one_word[:16_000] = corpus.speech(1, 16_000, level=0.05)
    assert not is_silent(media(one_word))


@pytest.mark.parametrize(
    "name", ["a.wav", "A.MP3", "x.m4a", "x.opus", "dir.x/y.webm", "v.MOV", "s.oga", "t.amr"]
)
def test_recordings_are_known_by_their_ending(name: str) -> None:
    assert looks_like_audio(name)


@pytest.mark.parametrize("name", ["a.txt", "wav", "x.wav.part", ".wav", "cover.jpg", "noending"])
def test_other_files_are_left_alone(name: str) -> None:
    assert not looks_like_audio(name)


def test_only_what_the_service_is_known_to_take_goes_as_it_is(cases: list[corpus.Case]) -> None:
    as_is = set()
    for case in (case for case in cases if not case.refusal):
        probed = probe(case.path)
        if sendable_as_is(probed.media, probed.size_bytes):
            as_is.add(case.path.name)
            assert prepare(case.path, probed.media).data == case.path.read_bytes()
        assert sendable_as_is(probed.media, 20_000_001) is None
    assert {"pcm_16.wav", "speech.mp3", "wav-named.mp3", "mp3-named.wav", "rate-44100.wav"} <= as_is
    assert as_is.isdisjoint({"pcm_24.wav", "ulaw.wav", "sizes-all-ones.wav", "phone.m4a", "channels-3.wav"})


def test_an_rf64_of_more_than_four_gigabytes_is_read_by_blocks(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    size_bytes = 4_400_000_000 if FULL else 100_000_000
    duration_s = corpus.sparse_rf64(path, size_bytes=size_bytes)
    output, above_mb = in_a_child(
        "from pathlib import Path\n"
        "from audiobatch.audio.probe import probe\n"
        "print(probe(Path(sys.argv[1])).media.duration_s)",
        str(path),
    )
    assert float(output) == pytest.approx(duration_s)
    assert above_mb < MOST_MEMORY_MB


def _claims_4_ghz() -> bytes:
    header = b"RIFF" + struct.pack("<I", 36 + 1600) + b"WAVEfmt "
    header += struct.pack("<IHHIIHH", 16, 1, 1, 0xFFFFFFFF, 0xFFFFFFFF, 2, 16)
    return header + b"data" + struct.pack("<I", 1600) + bytes(1600)


def _in_an_unknown_codec() -> bytes:
    whole = bytearray(corpus.wav(corpus.speech(1, 16_000), 16_000))
    whole[20:22] = b"\x99\x99"
    return bytes(whole)


HOSTILE = {"4ghz.wav": (_claims_4_ghz, "sample rate"), "codec.wav": (_in_an_unknown_codec, "codec")}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_header_that_no_decoder_can_follow_is_a_refusal(name: str, tmp_path: Path) -> None:
    make, reason = HOSTILE[name]
    path = tmp_path / name
    path.write_bytes(make())
    with pytest.raises(InputError, match=reason):
        probe(path)


@pytest.mark.parametrize("processes", [None, 1])
@pytest.mark.parametrize(
    "raised", [TypeError("open() got an unexpected keyword argument"), MemoryError(), AssertionError("odd")]
)
def test_whatever_a_decoder_raises_refuses_its_file_alone(
    raised: AssertionError | MemoryError | TypeError,
    processes: int | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In this process; a worker has its own, see the next test."""
    good, odd = tmp_path / "a.wav", tmp_path / "odd.wav"
    for path in (good, odd):
        path.write_bytes(corpus.wav(corpus.speech(1, 16_000), 16_000))
    whole = decode._PlainWav.blocks

    def blocks(self: Any, first_frame: int = 0) -> Any:
        if self._file.raw._raw.name.endswith("odd.wav"):
            raise raised
        return whole(self, first_frame)

    monkeypatch.setattr(decode._PlainWav, "blocks", blocks)
    monkeypatch.setattr(probe_module, "ProbePool", _InThisProcess)
    found = dict(probe_many([good, odd], processes))
    well, refused = found[good], found[odd]
    assert isinstance(well, Probed)
    assert isinstance(refused, InputError)
    assert well.media.duration_s == 1.0
    assert type(raised).__name__ in refused.message
    assert any("odd.wav" in record.getMessage() and record.exc_info for record in caplog.records)


class _InThisProcess(contextlib.nullcontext[Any]):
    """Answers as a worker does, where it can be watched."""

    def __init__(self, _count: int) -> None:
        super().__init__(self)

    def answers(self, paths: Iterable[Path]) -> Iterator[tuple[Path, Any]]:
        return ((path, answer(os.fspath(path))) for path in paths)


def test_a_file_that_kills_its_worker_is_refused_and_the_rest_is_read(tmp_path: Path) -> None:
    """A signal from outside is to the pool what a crash is."""
    for number in range(8):
        path = tmp_path / f"{number}.flac"
        path.write_bytes(corpus.wav(corpus.speech(1, 16_000), 16_000, "PCM_16", "FLAC"))
    with ProbePool(1) as pool:
        paths = iter(sorted(tmp_path.glob("*.flac")))
        first = pool.submit(next(paths)).result()
        (worker,) = pool._workers
        worker.kill()
        worker.stop(None)
        killed = pool.submit(next(paths)).result()
        rest = [pool.submit(path).result() for path in paths]
    assert "media" in first
    assert "crashed" in killed["refusal"]
    assert all("media" in answer for answer in rest)


def test_only_plain_wavs_are_read_in_this_process(tmp_path: Path) -> None:
    plain = tmp_path / "plain.wav"
    plain.write_bytes(corpus.wav(corpus.speech(1, 16_000), 16_000))
    packed = tmp_path / "packed.wav"
    packed.write_bytes(corpus.wav(corpus.speech(1, 16_000), 16_000, "IMA_ADPCM"))
    other = tmp_path / "other.flac"
    other.write_bytes(corpus.wav(corpus.speech(1, 16_000), 16_000, "PCM_16", "FLAC"))
    assert [is_plain_wav(path) for path in (plain, packed, other, tmp_path / "gone.wav")] == [
        *(True, False, False, False)
    ]
