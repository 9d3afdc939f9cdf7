"""Makes the recordings in `sample_inputs/recordings`. Run as `python -m tests.make_samples`.

The speech is the emulator's own voices. Each recording then gets a place to be in: a room's echo, a floor of noise,
a telephone's band. The same versions of the engines make the same files again, byte for byte.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]

from audiobatch_emulator.espeak_speech import EspeakSpeech  # noqa: E402
from audiobatch_emulator.speech import SAMPLE_RATE_HZ  # noqa: E402

RECORDINGS = ROOT / "sample_inputs" / "recordings"
PEAK = 0.5  # of full scale
BREATH_S = 0.25  # before the first word, and after the last

Samples = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one voice says, and on which side it is heard: -1 left, 0 middle, 1 right."""

    voice: str
    text: str
    side: float = 0.0
    pause_s: float = 0.35  # after it


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """One file: who speaks in it, where, and how it is written."""

    path: str
    parts: tuple[Part, ...]
    rate_hz: int
    channels: int = 1
    room_s: float = 0.15  # until the echo has fallen by 60 dB
    echo: float = 0.07  # of the direct sound
    noise_dbfs: float = -62.0
    telephone: bool = False


SAMPLES = (
    Recording(
        path="question.wav",
        rate_hz=16_000,
        parts=(Part(voice="echo", text="What time does the library open on Saturday?"),),
    ),
    Recording(
        path="voice-memo-shopping.wav",
        rate_hz=16_000,
        noise_dbfs=-60,
        parts=(
            Part(
                voice="ash",
                text="On the way home from work, I have to buy some milk, bread, and a bottle of olive oil.",
            ),
            Part(voice="ash", text="And I must not forget to call my mother before eight o'clock."),
        ),
    ),
    Recording(
        path="voice-memo-idea.wav",
        rate_hz=44_100,
        room_s=0.3,
        parts=(
            Part(
                voice="sage",
                text="I had an idea for the garden this morning. We need more flowers near the front door.",
            ),
        ),
    ),
    Recording(
        path="order-pizza.wav",
        rate_hz=24_000,
        telephone=True,
        noise_dbfs=-58,
        parts=(
            Part(
                voice="verse",
                text="I would like to order two large pizzas with extra cheese, please.",
            ),
        ),
    ),
    Recording(
        path="customer-call-delivery.wav",
        rate_hz=16_000,
        channels=2,
        noise_dbfs=-58,
        parts=(
            Part(voice="alloy", side=-1, text="Good morning, customer service. How can I help you?"),
            Part(
                voice="onyx",
                side=1,
                text="My package was supposed to arrive last Friday, but it is not here.",
            ),
            Part(voice="alloy", side=-1, text="I am sorry about that. I will send you a new one today."),
        ),
    ),
    Recording(
        path="doctor-appointment.wav",
        rate_hz=24_000,
        noise_dbfs=-60,
        parts=(
            Part(voice="fable", text="This is a message for the doctor. I have to change my appointment."),
            Part(voice="fable", text="Is it possible to come on Thursday afternoon?"),
        ),
    ),
    Recording(
        path="lesson-river.wav",
        rate_hz=16_000,
        room_s=0.35,
        echo=0.09,
        parts=(
            Part(voice="cedar", text="Welcome to the lesson. Today we talk about water.", pause_s=0.5),
            Part(voice="cedar", text="Rain falls on the mountains, and runs down into the river."),
            Part(
                voice="cedar",
                text="The river carries the water to the sea, where the sun makes it warm, "
                "and it goes up into the air again.",
            ),
        ),
    ),
    Recording(
        path="meetings/Café order – Zoë.wav",
        rate_hz=44_100,
        channels=2,
        room_s=0.3,
        noise_dbfs=-56,
        parts=(Part(voice="coral", side=0.3, text="One black coffee and two cups of tea with milk."),),
    ),
    Recording(
        path="meetings/decision.wav",
        rate_hz=16_000,
        room_s=0.3,
        parts=(
            Part(voice="marin", text="We have decided to open a second office in the spring of next year."),
        ),
    ),
    Recording(
        path="meetings/monday-report.mp3",
        rate_hz=24_000,
        room_s=0.25,
        parts=(
            Part(
                voice="ballad", text="Good morning, everybody. Here is the report for this week.", pause_s=0.6
            ),
            Part(voice="ballad", text="Sales went up by five percent, mostly because of the new customers."),
            Part(voice="ballad", text="We still have a problem with the supply of paper."),
            Part(
                voice="ballad", text="The next meeting is on Monday at ten. Thank you all for your hard work."
            ),
        ),
    ),
)


async def make(folder: Path) -> list[Path]:
    """Writes every recording under `folder`; the paths, in the order of `SAMPLES`."""
    speech = EspeakSpeech()
    try:
        return [write(folder, recording, await acted(speech, recording)) for recording in SAMPLES]
    finally:
        await speech.aclose()


async def acted(speech: EspeakSpeech, recording: Recording) -> Samples:
    """The parts one after the other, dry: frames x 2, at 24 kHz."""
    pieces = [silence(BREATH_S)]
    for part in recording.parts:
        mono = np.frombuffer(await speech.say(part.text, part.voice), "<i2") / 32768
        # Constant power, so that nobody gets louder by moving; 4 % of the voice reaches the far side.
        angle = (part.side * 0.92 + 1) * np.pi / 4
        pieces += [np.outer(mono, [np.cos(angle), np.sin(angle)]), silence(part.pause_s)]
    return np.concatenate([*pieces, silence(BREATH_S)])


def silence(duration_s: float) -> Samples:
    """Frames x 2, at 24 kHz."""
    return np.zeros((round(duration_s * SAMPLE_RATE_HZ), 2))


def write(folder: Path, recording: Recording, dry: Samples) -> Path:
    """Puts a dry recording into its place, and writes it."""
    random = np.random.default_rng(sum(recording.path.encode()))
    sound = reverberated(dry, recording.room_s, recording.echo, random)
    if recording.channels == 1:
        sound = sound.mean(axis=1, keepdims=True)
    if recording.telephone:
        sound = within_band(sound, 200, 4000)
    sound *= PEAK / np.abs(sound).max()
    sound += noise_floor(sound.shape, recording.noise_dbfs, random)
    sound *= faded(len(sound))[:, np.newaxis]
    path = folder / recording.path
    path.parent.mkdir(parents=True, exist_ok=True)
    resampled = soxr.resample(sound, SAMPLE_RATE_HZ, recording.rate_hz)
    if path.suffix == ".mp3":
        soundfile.write(path, resampled, recording.rate_hz, format="MP3", subtype="MPEG_LAYER_III")
    else:
        soundfile.write(path, resampled, recording.rate_hz, subtype="PCM_16")
    return path


def reverberated(dry: Samples, room_s: float, echo: float, random: np.random.Generator) -> Samples:
    """With the echo of a room: noise that dies away, another on each side, after 8 ms."""
    length, delay = round(room_s * SAMPLE_RATE_HZ), round(0.008 * SAMPLE_RATE_HZ)
    decay = 10 ** (-3 * np.arange(length) / length)
    tail = random.normal(size=(length, 2)) * decay[:, np.newaxis]
    tail *= echo / np.sqrt((tail**2).sum(axis=0))
    size = len(dry) + length + delay
    spectrum = np.fft.rfft(dry, size, axis=0) * np.fft.rfft(tail, size, axis=0)
    wet = np.fft.irfft(spectrum, size, axis=0)[: len(dry) - delay]
    echoed: Samples = dry + np.concatenate([np.zeros((delay, 2)), wet])
    return echoed


def within_band(sound: Samples, low_hz: float, high_hz: float) -> Samples:
    """Only what a telephone lets through, with soft edges."""
    frequencies = np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE_HZ)
    passed = 1 / np.sqrt(1 + (low_hz / np.maximum(frequencies, 1)) ** 8 + (frequencies / high_hz) ** 8)
    return np.fft.irfft(np.fft.rfft(sound, axis=0) * passed[:, np.newaxis], len(sound), axis=0)


def noise_floor(shape: tuple[int, int], level_dbfs: float, random: np.random.Generator) -> Samples:
    """Noise that falls by 3 dB an octave, as rooms and microphones have it."""
    spectrum = np.fft.rfft(random.normal(size=shape), axis=0)
    spectrum /= np.sqrt(np.maximum(np.fft.rfftfreq(shape[0], 1 / SAMPLE_RATE_HZ), 40))[:, np.newaxis]
    noise = np.fft.irfft(spectrum, shape[0], axis=0)
    levelled: Samples = noise * 10 ** (level_dbfs / 20) / np.sqrt((noise**2).mean())
    return levelled


def faded(length: int) -> Samples:
    """In over 50 ms and out over 150 ms."""
    gain = np.ones(length)
    rise, fall = round(0.05 * SAMPLE_RATE_HZ), round(0.15 * SAMPLE_RATE_HZ)
    gain[:rise], gain[-fall:] = np.linspace(0, 1, rise), np.linspace(1, 0, fall)
    return gain


if __name__ == "__main__":
    for written in asyncio.run(make(RECORDINGS)):
        print(f"{written.stat().st_size:>8}  {written.relative_to(ROOT)}")
