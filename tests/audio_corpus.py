"""Recordings of every kind and with every defect, made from nothing: what the audio tests read.

The sound is speech-like: voiced syllables with pauses between words and sentences, and a soft beginning and end.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import soundfile
from av.audio import AudioStream
from av.video import VideoStream
from numpy.typing import NDArray

from tests.narrowing import present

SPEECH_S = 2.0
#: `speech(SPEECH_S, 8_000)` by the encoder libopencore_amrnb of PyAV 18; PyAV 19 has none.
AMR = Path(__file__).resolve().parent / "fixtures" / "amr"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A file and what `probe` must say of it: facts, or a reason to refuse that matches `refusal`."""

    path: Path
    refusal: str = ""
    duration_s: float = SPEECH_S
    container: str = "wav"
    sample_rate_hz: int = 16_000
    channels: int = 1
    slack_s: float = 0.0
    note: str = ""


def speech(duration_s: float, rate_hz: int, *, seed: int = 1, level: float = 0.25) -> NDArray[np.float32]:
    """A speech-like sound: frames of float32 at full scale +-1, silent in its first and last 40 ms."""
    random = np.random.default_rng(seed)
    frames = round(duration_s * rate_hz)
    at = np.arange(frames) / rate_hz
    pitch = 110 + 20 * np.sin(2 * np.pi * 0.7 * at + random.uniform(0, 6))
    phase = 2 * np.pi * np.cumsum(pitch) / rate_hz
    wave = sum(np.sin(phase * k) / k for k in range(1, 12) if 130 * k < rate_hz / 2)
    envelope = np.zeros(frames)
    cursor = 0.05
    while cursor < duration_s - 0.1:
        for _ in range(random.integers(1, 4)):
            length = random.uniform(0.09, 0.2)
            first, last = round(cursor * rate_hz), round(min(cursor + length, duration_s - 0.04) * rate_hz)
            if last - first > 8:
                envelope[first:last] = np.hanning(last - first) * random.uniform(0.6, 1.0)
            cursor += length + 0.01
        cursor += random.choice([0.08, 0.25, 0.6], p=[0.6, 0.25, 0.15])
    sound = wave * envelope
    levelled: NDArray[np.float32] = (sound * level / max(1e-9, np.abs(sound).max())).astype(np.float32)
    return levelled


def wav(samples: np.ndarray, rate_hz: int, subtype: str = "PCM_16", container: str = "WAV") -> bytes:
    """Encode samples with soundfile."""
    out = io.BytesIO()
    soundfile.write(out, samples, rate_hz, subtype=subtype, format=container)
    return out.getvalue()


def with_sizes(data: bytes, *, riff: int | None = None, sound: int | None = None) -> bytes:
    """The same WAV with other numbers in its header."""
    changed = bytearray(data)
    at = changed.index(b"data") + 4
    if riff is not None:
        struct.pack_into("<I", changed, 4, riff)
    if sound is not None:
        struct.pack_into("<I", changed, at, sound)
    return bytes(changed)


def by_ffmpeg(
    samples: np.ndarray,
    rate_hz: int,
    muxer: str,
    codec: str,
    *,
    kind: str = "s16",
    picture: str = "",
    silent_film_s: float = 0.0,
    lost_s: tuple[float, float] = (0.0, 0.0),
    bits_per_s: int = 0,
) -> bytes:
    """Encodes frames (x channels) with FFmpeg, with a small moving picture beside the sound if asked.

    Args:
        picture: the codec of its picture; none without.
        silent_film_s: by how much the picture outlasts the sound.
        lost_s: packets of sound from one moment to another are not written.
    """
    samples = samples.reshape(len(samples), -1)
    layout = "mono" if samples.shape[1] == 1 else "stereo"
    out = io.BytesIO()
    with av.open(out, "w", format=muxer) as container:
        pictures = None
        if picture:
            pictures = cast("VideoStream", container.add_stream(picture, rate=10))
            pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        stream = cast("AudioStream", container.add_stream(codec, rate=rate_hz, layout=layout))
        stream.codec_context.format = av.AudioFormat(kind)
        if bits_per_s:
            stream.bit_rate = bits_per_s
        resampler = av.AudioResampler(format=kind, layout=layout, rate=rate_hz)
        if pictures is not None:
            for number in range(round(10 * (len(samples) / rate_hz + silent_film_s))):
                shown = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number * 9 % 255, np.uint8), "rgb24")
                container.mux(pictures.encode(shown))
            container.mux(pictures.encode(None))
        pcm = np.ascontiguousarray(samples, np.float32).reshape(1, -1)
        frame = av.AudioFrame.from_ndarray(pcm, format="flt", layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = rate_hz, Fraction(1, rate_hz), 0
        for given in (frame, None):
            for ready in resampler.resample(given):
                container.mux(_without(lost_s, stream.encode(ready)))
        container.mux(_without(lost_s, stream.encode(None)))
    return out.getvalue()


def _without(
    lost_s: tuple[float, float], packets: list[av.Packet[AudioStream]]
) -> list[av.Packet[AudioStream]]:
    return [
        packet for packet in packets if not lost_s[0] <= present(packet.pts) * packet.time_base < lost_s[1]
    ]


def sparse_rf64(
    path: Path, *, rate_hz: int = 48_000, channels: int = 2, size_bytes: int = 4_400_000_000
) -> float:
    """An RF64 of more than 4 GB that takes a few kilobytes on disk: a second of sound, then silence; its length."""
    frame_bytes = 2 * channels
    data_bytes = size_bytes - size_bytes % frame_bytes
    header = b"RF64" + b"\xff" * 4 + b"WAVE"
    header += b"ds64" + struct.pack("<IQQQI", 28, data_bytes + 72, data_bytes, data_bytes // frame_bytes, 0)
    header += b"fmt " + struct.pack(
        "<IHHIIHH", 16, 1, channels, rate_hz, rate_hz * frame_bytes, frame_bytes, 16
    )
    header += b"data" + b"\xff" * 4
    tone = (speech(1.0, rate_hz) * 32767).astype("<i2")
    with path.open("wb") as file:
        file.write(header)
        file.write(np.repeat(tone[:, None], channels, axis=1).tobytes())
        file.truncate(len(header) + data_bytes)
    return data_bytes / frame_bytes / rate_hz


def make(folder: Path) -> list[Case]:  # noqa: C901 - a block for each kind of file
    """Writes the corpus; about 110 files, 7 MB."""
    folder.mkdir(parents=True, exist_ok=True)
    cases: list[Case] = []

    def put(name: str, data: bytes, **expected: Any) -> None:
        path = folder / name
        path.write_bytes(data)
        cases.append(Case(path=path, **expected))

    mono = speech(SPEECH_S, 16_000)
    stereo = np.stack((mono, np.roll(mono, 800)), axis=1)
    plain = wav(mono, 16_000)
    for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW", "ALAW"):
        put(f"{subtype.lower()}.wav", wav(mono, 16_000, subtype))
        put(f"{subtype.lower()}-extensible.wav", wav(stereo, 16_000, subtype, "WAVEX"), channels=2)
    for subtype in ("IMA_ADPCM", "MS_ADPCM"):
        put(f"{subtype.lower()}.wav", wav(mono, 16_000, subtype), slack_s=0.1)
        streamed = with_sizes(wav(mono, 16_000, subtype), riff=0xFFFFFFFF, sound=0xFFFFFFFF)
        put(f"{subtype.lower()}-streamed.wav", streamed, slack_s=0.1, note="header")
    put("gsm.wav", wav(speech(SPEECH_S, 8_000), 8_000, "GSM610"), sample_rate_hz=8_000, slack_s=0.1)
    for rate in (
        8_000,
        11_025,
        12_000,
        22_050,
        24_000,
        32_000,
        37_800,
        44_100,
        48_000,
        88_200,
        96_000,
        192_000,
    ):
        put(f"rate-{rate}.wav", wav(speech(SPEECH_S, rate), rate), sample_rate_hz=rate)
    for channels in range(2, 9):
        many = np.repeat(mono[:, None], channels, axis=1)
        put(f"channels-{channels}.wav", wav(many, 16_000), channels=channels)
    put("rf64.wav", wav(mono, 16_000, "PCM_16", "RF64"))
    put("sixty-four.w64", wav(mono, 16_000, "PCM_16", "W64"), container="w64")
    put("sizes-all-ones.wav", with_sizes(plain, riff=0xFFFFFFFF, sound=0xFFFFFFFF), note="header")
    put("sizes-zero.wav", with_sizes(plain, riff=0, sound=0), note="header")
    put("sizes-sox-pipe.wav", with_sizes(plain, riff=0x7FFFF024, sound=0x7FFFF000), note="header")
    put("size-lies-low.wav", with_sizes(plain, sound=3200), note="header")
    put("riff-size-lies.wav", with_sizes(plain, riff=17))
    listed = b"LIST" + struct.pack("<I", 26) + b"INFOINAM" + struct.pack("<I", 14) + b"A quiet room.\0"
    put("list-behind.wav", with_sizes(plain + listed, riff=len(plain + listed) - 8))
    put("list-before.wav", plain[:36] + listed + plain[36:])
    put("id3-behind.wav", plain + b"ID3\x04\0\0\0\0\x02\0" + b"\x01" * 256)
    put("zeros-behind.wav", plain + bytes(4096))
    put("odd-byte-missing.wav", plain[:-1], slack_s=0.001)

    put("speech.flac", wav(mono, 16_000, "PCM_16", "FLAC"), container="flac")
    put("speech-24.flac", wav(stereo, 16_000, "PCM_24", "FLAC"), container="flac", channels=2)
    put("speech.mp3", wav(mono, 16_000, "MPEG_LAYER_III", "MP3"), container="mp3", slack_s=0.12)
    put("stereo.mp3", wav(stereo, 16_000, "MPEG_LAYER_III", "MP3"), container="mp3", channels=2, slack_s=0.12)
    put("speech.ogg", wav(mono, 16_000, "VORBIS", "OGG"), container="ogg", slack_s=0.03)
    for channels in (6, 8):  # planar frames of 8 channels have crashed a decoder
        many = np.repeat(mono[:, None], channels, axis=1)
        put(
            f"channels-{channels}.ogg",
            wav(many, 16_000, "VORBIS", "OGG"),
            container="ogg",
            channels=channels,
            slack_s=0.03,
        )
    put("speech.opus", wav(mono, 16_000, "OPUS", "OGG"), container="ogg", sample_rate_hz=48_000, slack_s=0.03)
    put("speech.aiff", wav(mono, 16_000, "PCM_16", "AIFF"), container="aiff")
    put("speech.aif", wav(stereo, 16_000, "PCM_24", "AIFF"), container="aiff", channels=2)
    put("float.aiff", wav(mono, 16_000, "FLOAT", "AIFF"), container="aiff")
    put("speech.au", wav(mono, 16_000, "ULAW", "AU"), container="au")
    put("speech.caf", wav(mono, 16_000, "PCM_16", "CAF"), container="caf")
    aac: dict[str, Any] = {"codec": "aac", "kind": "fltp"}
    m4a = by_ffmpeg(mono, 16_000, "ipod", **aac)
    put("phone.m4a", m4a, container="mp4", slack_s=0.15)
    put("stereo.m4a", by_ffmpeg(stereo, 16_000, "ipod", **aac), container="mp4", channels=2, slack_s=0.15)
    put("lossless.m4a", by_ffmpeg(mono, 16_000, "ipod", "alac", kind="s16p"), container="mp4", slack_s=0.01)
    put("speech.aac", by_ffmpeg(mono, 16_000, "adts", **aac), container="aac", slack_s=0.15)
    put("film.mp4", by_ffmpeg(mono, 16_000, "mp4", **aac, picture="mpeg4"), container="mp4", slack_s=0.15)
    put(
        "film.mov",
        by_ffmpeg(stereo, 16_000, "mov", **aac, picture="mpeg4"),
        container="mp4",
        channels=2,
        slack_s=0.15,
    )
    put(
        "film.mkv", by_ffmpeg(mono, 16_000, "matroska", **aac, picture="mpeg4"), container="mkv", slack_s=0.15
    )
    high = speech(SPEECH_S, 48_000)
    opus = by_ffmpeg(high, 48_000, "webm", "libopus")
    put("browser.webm", opus, container="webm", sample_rate_hz=48_000, slack_s=0.03)
    for name, container in (("phone.amr", "amr"), ("phone.3gp", "mp4")):
        put(name, (AMR / name).read_bytes(), container=container, sample_rate_hz=8_000, slack_s=0.05)
    stereo_48 = np.stack((high, high), axis=1)
    wma = by_ffmpeg(stereo_48, 48_000, "asf", "wmav2", kind="fltp", bits_per_s=128_000)
    put("old.wma", wma, container="wma", channels=2, sample_rate_hz=48_000, slack_s=0.15)
    for ending, muxer, codec, kind, picture in (
        ("mkv", "matroska", "aac", "fltp", "mpeg4"),
        ("webm", "webm", "libopus", "s16", "libvpx"),
        ("wma", "asf", "wmav2", "fltp", "wmv2"),
    ):
        film = by_ffmpeg(
            high, 48_000, muxer, codec, kind=kind, bits_per_s=96_000, picture=picture, silent_film_s=2
        )
        put(f"silent-end.{ending}", film, container=ending, sample_rate_hz=48_000, slack_s=0.15)
        put(f"half-silent-end.{ending}", _half(film), refusal=r"promises 4\.. s")

    mp3 = (folder / "speech.mp3").read_bytes()
    finer = by_ffmpeg(mono, 16_000, "mp3", "libmp3lame", bits_per_s=128_000)
    for name, data in (("counted", finer), ("uncounted", uncounted(finer))):
        put(f"{name}-and-a-cover.mp3", data + _ape_cover(), container="mp3", slack_s=0.12, note="damaged")
    put("zeros-behind.mp3", finer + bytes(200_000), container="mp3", slack_s=0.12, note="damaged")
    put("latin-title.mp3", tagged(finer), container="mp3", slack_s=0.12)
    put("half-counted.mp3", _half(finer), refusal=r"promises 2\.. s")
    put("mp3-named.wav", mp3, container="mp3", slack_s=0.12, note="extension says .wav, content is mp3")
    put("wav-named.mp3", plain, note="extension says .mp3, content is wav")
    put("m4a-named.mp3", m4a, container="mp4", slack_s=0.15, note="extension says .mp3, content is mp4")
    put("flac-named.ogg", (folder / "speech.flac").read_bytes(), container="flac", note="extension says .ogg")
    put("NAMED.WAV", plain)
    put("ein Gespräch (1).wav", plain)

    noise = np.random.default_rng(7).bytes(60_000)
    words = ("Minutes of the meeting. " * 40).encode()
    put("empty.wav", b"", refusal="empty")
    put("empty.mp3", b"", refusal="empty")
    put("text.wav", words, refusal="text")
    put("text.mp3", words, refusal="text")
    put("page.m4a", b"<!doctype html><title>404</title>" * 9, refusal="text")
    put("playlist.mp3", b"#EXTM3U\n#EXTINF:5,\nhttp://127.0.0.1:9/secret.mp3\n", refusal="text")
    put("concat.wav", b"ffconcat version 1.0\nfile '/etc/hostname'\n", refusal="text")
    for ending in ("wav", "mp3", "m4a", "aac", "ogg", "amr"):
        put(f"random.{ending}", noise, refusal="no audio in any format")
    put("zeros.wav", bytes(10_000), refusal="no audio")
    put("picture.mp3", b"\x89PNG\r\n\x1a\n" + noise[:4000], refusal="no audio")
    put("silent-film.mp4", _film_without_sound(), refusal="no sound")
    put("cut-in-header-8.wav", plain[:8], refusal="cut|damaged|no audio|text")
    put("cut-in-header-30.wav", plain[:30], refusal="cut in its header")
    put("cut-behind-fmt.wav", plain[:36], refusal="cut in its header")
    put("no-samples.wav", wav(mono[:0], 16_000), refusal="0 samples")
    put(
        "no-samples.aiff",
        wav(mono[:0], 16_000, "PCM_16", "AIFF"),
        refusal="0 samples|cut or damaged|no audio",
    )
    put("half.wav", plain[: len(plain) // 2], refusal=r"promises 2\.0 s, 1\.0 s are there")
    put("half-float.wav", _half(wav(mono, 16_000, "FLOAT")), refusal="cut short")
    put("half-adpcm.wav", _half(wav(mono, 16_000, "IMA_ADPCM")), refusal="cut short")
    put("half-rf64.wav", _half(wav(mono, 16_000, "PCM_16", "RF64")), refusal="cut short")
    put("half.mp3", _half(mp3), refusal="cut short")
    put("half.flac", _half((folder / "speech.flac").read_bytes()), refusal="cut short")
    put("half.aiff", _half((folder / "speech.aiff").read_bytes()), refusal="cut short")
    put("half.ogg", _half((folder / "speech.ogg").read_bytes()), refusal="cut")
    put("half.opus", _half((folder / "speech.opus").read_bytes()), refusal="cut")
    put("half.m4a", _half(m4a), refusal="cut short")
    put("half.webm", _half(opus), refusal="cut short")
    put("half-film.mkv", _half((folder / "film.mkv").read_bytes()), refusal="cut short")
    put("no-channels.wav", plain[:22] + b"\0\0" + plain[24:], refusal="0 channels")
    put("no-rate.wav", plain[:24] + bytes(4) + plain[28:], refusal="0 Hz")
    return cases


def _half(data: bytes) -> bytes:
    return data[: len(data) // 2]


def tagged(mp3: bytes) -> bytes:
    """The same with a title whose bytes are not the UTF-8 that its tag claims."""
    title = b"\x03caf\xe9 \xff\xfe"
    frame = b"TIT2" + struct.pack(">I", len(title)) + bytes(2) + title
    return b"ID3\x03\0\0" + bytes((0, 0, 0, len(frame))) + frame + mp3


def uncounted(mp3: bytes) -> bytes:
    """An mp3 whose header frame has become a frame of silence."""
    assert b"Info" in mp3[:2000]
    return mp3.replace(b"Info", bytes(4), 1)


def _ape_cover() -> bytes:
    """A tag with a picture, as taggers leave it behind the sound."""
    key = b"Cover Art (Front)\0"
    value = b"cover.jpg\0" + bytes(byte & 0x7F for byte in np.random.default_rng(3).bytes(150_000))
    item = struct.pack("<II", len(value), 2) + key + value
    footer = struct.pack("<8sIIII8x", b"APETAGEX", 2000, len(item) + 32, 1, 0)
    return item + footer


def _film_without_sound() -> bytes:
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for _ in range(5):
            frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return out.getvalue()
