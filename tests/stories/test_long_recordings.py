"""Recordings that are too long for one request: sent in parts, resumed part by part, put together again."""

import os
import re
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from audiobatch.audio.probe import probe
from audiobatch.calls.stats import RunSummary
from audiobatch.errors import ConfigError
from audiobatch.execution.job import Job
from audiobatch.model import Reply, Request
from audiobatch.storage.local import LocalStorage
from audiobatch_emulator.process import EmulatorProcess
from tests.audio_corpus import by_ffmpeg, speech, wav
from tests.bare_server import bare_server, completion
from tests.narrowing import local, present
from tests.running import ROOT, azure, rows_of, run_job, spec_of

RATE = 16_000
#: Looked at when the tests are collected: each test runs without this project's variables.
FULL = bool(os.environ.get("AUDIOBATCH_FULL"))


def talk(path: Path, seconds: float) -> Path:
    """Somebody talks, with a pause of a second after each nine."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stretch = np.concatenate((speech(9.0, RATE), np.zeros(RATE, np.float32)))
    with soundfile.SoundFile(path, "w", RATE, 1, "PCM_16", format="WAV") as file:
        for _ in range(int(seconds // 10)):
            file.write(stretch)
    return path


def job(emulator: EmulatorProcess, tmp_path: Path, **settings: Any) -> RunSummary:
    return run_job(
        inputs=[str(tmp_path / "in")],
        output=str(tmp_path / "out"),
        **azure(emulator, **{"max_part": 0.5, **settings}),
    )


def the_row(summary: RunSummary, turn: int = 1) -> dict[str, str]:
    (row,) = [row for row in rows_of(summary) if row["turn"] == str(turn)]
    return row


def test_a_long_recording_goes_out_in_parts_and_comes_back_as_one(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    talk(tmp_path / "in" / "talk.wav", 90)
    summary = job(emulator, tmp_path)
    row = the_row(summary)
    calls = emulator.settled_journal(4)
    assert (summary.succeeded, row["parts"], row["attempts"]) == (1, "4", "4")
    assert sum(call["input_audio_tokens"] for call in calls) == pytest.approx(900, abs=8)
    assert int(row["input_audio_tokens"]) == sum(call["input_audio_tokens"] for call in calls)
    starts = [
        3600 * int(hours) + 60 * int(minutes) + int(seconds)
        for hours, minutes, seconds in re.findall(
            r"^\[(\d+):(\d\d):(\d\d)\]", row["transcript"], re.MULTILINE
        )
    ]
    assert len(starts) == 4
    assert starts[0] == 0
    assert all(10 <= later - earlier <= 30 for earlier, later in pairwise(starts))
    lengths = [float(text) for text in re.findall(r"lasts ([\d.]+) seconds", row["transcript"])]
    assert sum(lengths) == pytest.approx(90, abs=1)
    assert max(lengths) <= 30
    assert local(summary.output / row["transcript_file"]).read_text() == row["transcript"]
    spoken_s = sum(call["output_audio_tokens"] for call in calls) / 20
    assert float(row["audio_duration_s"]) == pytest.approx(spoken_s + 3 * 0.5, abs=0.3), "a short gap between"
    assert probe(local(summary.output / row["audio_file"])).media.duration_s == pytest.approx(
        float(row["audio_duration_s"]), abs=0.01
    )
    assert not [path for path in local(summary.output / "parts").rglob("*") if path.is_file()]
    assert job(emulator, tmp_path).sent == 0


def test_parts_that_a_new_ledger_does_not_know_are_not_bought_again(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    talk(tmp_path / "in" / "talk.wav", 40)
    emulator.put_faults({"when": {"nth": 2}, "do": {"status": 400}})
    assert job(emulator, tmp_path, ledger=str(tmp_path / "old.db"), max_concurrency=1).failed == 1
    files = [path.relative_to(tmp_path / "out").parts for path in (tmp_path / "out").rglob("talk*")]
    assert {folder for folder, _ in files} == {"parts"}
    calls = len(emulator.journal())
    with pytest.raises(ConfigError, match=r"is new and knows none of them"):
        job(emulator, tmp_path, ledger=str(tmp_path / "new.db"))
    assert len(emulator.journal()) == calls


@pytest.mark.parametrize("audio_format", ["mp3", "m4a"])
def test_joined_replies_have_the_job_s_format(
    audio_format: str, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    talk(tmp_path / "in" / "talk.wav", 40)
    row = the_row(job(emulator, tmp_path, format=audio_format))
    assert row["audio_file"].endswith(audio_format)
    media = probe(tmp_path / "out" / row["audio_file"]).media
    assert media.duration_s == pytest.approx(float(row["audio_duration_s"]), abs=0.1)


def test_a_compressed_recording_is_unpacked_once_and_its_copy_is_gone(
    emulator: EmulatorProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", None)
    sound, _ = soundfile.read(talk(tmp_path / "plain.wav", 70))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "talk.m4a").write_bytes(
        by_ffmpeg(sound.astype(np.float32), RATE, "ipod", "aac", kind="fltp")
    )
    row = the_row(job(emulator, tmp_path, modalities="text"))
    assert (row["status"], row["parts"]) == ("succeeded", "3")
    assert list(scratch.iterdir()) == []


def test_a_follow_up_builds_on_the_joined_words(tmp_path: Path) -> None:
    talk(tmp_path / "in" / "talk.wav", 40)

    def reply(_path: str, body: bytes, _before: int) -> object:
        return completion("A summary." if b"And in short" in body else "Somebody talks.", sound_s=1.0)

    with bare_server(reply) as server:
        summary = run_job(
            inputs=[str(tmp_path / "in")],
            output=str(tmp_path / "out"),
            provider="openai",
            endpoint=server.url,
            prompt=("What is said?", "And in short?"),
            max_part=0.5,
        )
    assert [row["status"] for row in rows_of(summary)] == ["succeeded", "succeeded"]
    assert len(server.bodies) == 3
    last = server.bodies[-1].decode()
    assert "input_audio" not in last
    assert "[0:00:00] Somebody talks.\\n\\n[0:00:" in last
    assert "What is said?" in last


TOPIC = ({"name": "topic", "description": "what it is about"},)


def test_a_recording_in_parts_is_refused_before_it_is_asked_for_fields(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    from audiobatch.planning.forecast import forecast

    talk(tmp_path / "in" / "long.wav", 40)
    talk(tmp_path / "in" / "short.wav", 20)
    how: dict[str, Any] = {"modalities": "text", "fields": TOPIC, "prompt": "What is it about?"}
    summary = job(emulator, tmp_path, **how)
    long, short = rows_of(summary)
    assert (long["status"], long["error_type"], long["reply.topic"]) == ("refused", "input", "")
    assert "a follow-up turn (a second --prompt)" in long["error_message"]
    assert "raise --max-part" in long["error_message"]
    assert (short["status"], bool(short["reply.topic"])) == ("succeeded", True)
    assert len(emulator.settled_journal(1)) == 1, "nothing was paid for the long one"
    planned = forecast(
        spec_of(
            inputs=[str(tmp_path / "in")], output=str(tmp_path / "o"), max_part=0.5, provider="local", **how
        )
    )
    assert planned.refused == {"long.wav": long["error_message"]}
    assert (planned.to_send, planned.calls) == (1, 1)
    raised = job(emulator, tmp_path, **how, max_part=1, redo=True)
    assert [bool(row["reply.topic"]) for row in rows_of(raised)] == [True, True]


def test_a_follow_up_answers_in_fields_for_the_whole_of_a_recording_in_parts(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    talk(tmp_path / "in" / "talk.wav", 40)
    how = {"modalities": "text", "fields": TOPIC, "prompt": ("What is said?", "What is it about?")}
    first, last = rows_of(job(emulator, tmp_path, **how))
    assert (first["status"], first["parts"], first["reply.topic"]) == ("succeeded", "2", "")
    assert (last["status"], bool(last["reply.topic"])) == ("succeeded", True)
    assert len(emulator.settled_journal(3)) == 3


def test_one_side_that_its_own_silence_leaves_short_enough_is_asked_for_fields(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    """Only the recording itself says how long a trimmed side is: no plan refuses it, no call is in vain."""
    talks, hardly = speech(40.0, RATE), np.concatenate((speech(12.0, RATE), np.zeros(28 * RATE, np.float32)))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "call.wav").write_bytes(wav(np.stack([talks, hardly], axis=1), RATE))
    how = {"modalities": "text", "fields": TOPIC, "channels": "split", "trim_silence": True}
    left, right = rows_of(job(emulator, tmp_path, **how))
    assert (left["status"], left["error_type"]) == ("failed", "input")
    assert "it goes out in parts" in left["error_message"]
    assert (right["status"], bool(right["reply.topic"])) == ("succeeded", True)
    assert len(emulator.settled_journal(1)) == 1


def test_a_part_that_fails_leaves_the_others_recorded_and_only_it_is_sent_again(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    talk(tmp_path / "in" / "talk.wav", 90)
    emulator.put_faults({"when": {"nth": 3}, "do": {"status": 400}})
    first = job(emulator, tmp_path)
    row = the_row(first)
    assert (first.exit_code, row["status"], row["error_type"]) == (3, "failed", "rejected")
    assert re.match(r"part \d of 4: ", row["error_message"])
    made = len([call for call in emulator.settled_journal(3) if call["status"] == 200])
    assert made >= 2
    emulator.put_faults()
    from audiobatch.planning.plan import Retry

    second = run_job(
        inputs=[str(tmp_path / "in")],
        output=str(tmp_path / "out"),
        retry=Retry(),
        **azure(emulator, max_part=0.5),
    )
    assert (second.succeeded, the_row(second)["parts"]) == (1, "4")
    billed = [call for call in emulator.journal() if call["billed"]]
    assert len(billed) == 4, "no part was bought twice"
    assert len({call["item_hash"] for call in billed}) == 4


def test_attempts_are_the_calls_that_were_made_whatever_run_made_them(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    from audiobatch.planning.plan import Retry

    talk(tmp_path / "in" / "talk.wav", 140)
    emulator.put_faults(
        {"when": {"nth": 2}, "do": {"status": 503, "headers": {"retry-after-ms": "10"}}},
        {"when": {"nth": 4}, "do": {"status": 400}},
    )
    first = job(emulator, tmp_path)
    assert (first.exit_code, the_row(first)["status"]) == (3, "failed")
    emulator.put_faults()
    second = run_job(
        inputs=[str(tmp_path / "in")],
        output=str(tmp_path / "out"),
        retry=Retry(),
        **azure(emulator, max_part=0.5),
    )
    row = the_row(second)
    assert (row["status"], row["parts"]) == ("succeeded", "6")
    assert int(row["attempts"]) == len(emulator.settled_journal(8)) == 6 + 2


def test_a_part_that_is_asked_again_for_a_flaw_costs_both_replies(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    talk(tmp_path / "in" / "talk.wav", 60)
    emulator.put_faults({"when": {"nth": 1}, "do": {"corrupt": "text_only"}})
    summary = run_job(
        inputs=[str(tmp_path / "in")],
        output=str(tmp_path / "out"),
        on_check=["text_only=redo"],
        **azure(emulator, max_part=0.5),
    )
    row = the_row(summary)
    assert (row["status"], row["checks"]) == ("succeeded", "")
    assert int(row["attempts"]) == len(emulator.settled_journal(4)) == int(row["parts"]) + 1
    assert float(row["cost_usd"]) == pytest.approx(float(present(summary.cost_usd)))


def test_a_run_that_stops_between_parts_is_resumed_where_it_was(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    talk(tmp_path / "in" / "talk.wav", 140)

    def stop_soon(running: Job) -> None:
        from audiobatch.stop import StopReason

        record = running.context.ledger.writer.record_part

        async def record_then_stop(*arguments: Any) -> None:
            await record(*arguments)
            running.stop.ask(StopReason.SIGINT)

        running.context.ledger.writer.record_part = record_then_stop  # type: ignore[assignment, method-assign]  # a stand-in

    stopped = run_job(
        inputs=[str(tmp_path / "in")],
        output=str(tmp_path / "out"),
        on_open=stop_soon,
        **azure(emulator, max_part=0.5),
    )
    assert (stopped.exit_code, stopped.pending) == (130, 1)
    before = len(emulator.settled_journal(1))
    assert before < 5
    assert [path.name for path in (tmp_path / "out" / "parts").iterdir()] != []
    resumed = job(emulator, tmp_path)
    assert (resumed.succeeded, the_row(resumed)["parts"]) == (1, "6")
    assert len(emulator.settled_journal(6)) == 6


CHILD = """
import sys
from tests.running import run_job
from pathlib import Path
run_job(inputs=[sys.argv[1]], output=sys.argv[2], endpoint=sys.argv[3], deployment="gpt-audio-1.5",
        max_part=float(sys.argv[4]))
# Not `ru_maxrss`: that begins with what the process had that started this one.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def child(emulator: EmulatorProcess, tmp_path: Path, max_part: float = 0.5) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, tmp_path / "in", tmp_path / "out", emulator.base_url, str(max_part)],
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}:{ROOT}/tests",
            "AZURE_OPENAI_API_KEY": emulator.api_key,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_kill_between_parts_buys_none_of_the_recorded_ones_again(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    talk(tmp_path / "in" / "talk.wav", 200)
    emulator.put_faults({"do": {"latency_s": 0.3}})
    with child(emulator, tmp_path) as killed:
        while len([call for call in emulator.journal() if call["delivered"]]) < 4:
            assert killed.poll() is None, present(killed.stderr).read()
            time.sleep(0.02)
        killed.kill()
    emulator.put_faults()
    before = emulator.settled_journal(4)
    resumed = job(emulator, tmp_path)
    assert the_row(resumed)["status"] == "succeeded"
    parts = int(the_row(resumed)["parts"])
    billed = [call for call in emulator.settled_journal(len(before)) if call["billed"]]
    assert len(billed) - parts <= 2, "at most what was in flight"
    assert parts < len(before) + parts - 2


def test_silence_is_trimmed_and_the_times_stay_those_of_the_recording(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    sound = np.concatenate([speech(20.0, RATE), np.zeros(60 * RATE, np.float32), speech(20.0, RATE, seed=2)])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "talk.wav").write_bytes(wav(sound, RATE))
    row = the_row(job(emulator, tmp_path, trim_silence=True, max_part=0.4))
    assert float(row["trimmed_s"]) == pytest.approx(59, abs=1.5)
    assert row["parts"] == "2"
    starts = re.findall(r"^\[0:(\d\d):(\d\d)\]", row["transcript"], re.MULTILINE)
    later_s = 60 * int(starts[1][0]) + int(starts[1][1])
    assert later_s <= 20 or later_s >= 79, "no part begins in what was left out"
    lengths = [float(text) for text in re.findall(r"lasts ([\d.]+) seconds", row["transcript"])]
    assert sum(lengths) == pytest.approx(100 - float(row["trimmed_s"]), abs=0.5)


@pytest.mark.parametrize("seconds", [40, 90, 140])
def test_the_plan_knows_how_many_parts_there_will_be(
    seconds: int, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    from audiobatch.planning.forecast import forecast

    talk(tmp_path / "in" / "talk.wav", seconds)
    how: dict[str, Any] = {"modalities": "text", "max_part": 0.5, "transcribe_inputs": "whisper-1"}
    spec = spec_of(inputs=[str(tmp_path / "in")], output=str(tmp_path / "out"), **azure(emulator), **how)
    planned = forecast(spec)
    parts = int(the_row(job(emulator, tmp_path, **how))["parts"])
    assert (planned.calls, planned.transcription_calls) == (parts, parts)


KINDS = ("input_text_tokens", "input_audio_tokens", "output_text_tokens", "output_audio_tokens")


def taken(rows: list[dict[str, str]]) -> dict[str, int]:
    return {kind: sum(int(row[kind] or 0) for row in rows) for kind in KINDS}


@pytest.mark.parametrize("turns", [2, 3, 4])
@pytest.mark.parametrize("modalities", ["text", "text,audio"])
def test_the_turns_after_a_recording_in_parts_are_planned_as_they_are_made(
    turns: int, modalities: str, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    """No follow-up hears the recording; the first one in text is asked for with sound, which the others hear."""
    from audiobatch.planning.forecast import forecast

    prompt = ("What is said?", "And in short?", "Give it a title.", "Who speaks?")[:turns]
    how: dict[str, Any] = {"modalities": modalities, "max_part": 0.25, "prompt": prompt}
    spec = spec_of(inputs=[str(tmp_path / "in")], output=str(tmp_path / "out"), **azure(emulator), **how)
    talk(tmp_path / "in" / "a.wav", 60)
    planned = forecast(spec)
    first = job(emulator, tmp_path, **how)
    actual = taken(rows_of(first))
    for kind, of in planned.tokens.items():
        assert of.low <= actual[kind] <= of.high, kind
    assert actual["output_audio_tokens"] > 0
    assert actual["input_audio_tokens"] < 600 * turns
    assert present(planned.cost_usd)["low"] <= present(first.cost_usd) <= present(planned.cost_usd)["high"]

    talk(tmp_path / "in" / "b.wav", 70)
    learned = forecast(spec)
    second = job(emulator, tmp_path, **how)
    actual = taken([row for row in rows_of(second) if row["item_id"] == "b.wav"])
    assert learned.tokens["input_audio_tokens"].expected == pytest.approx(
        actual["input_audio_tokens"], rel=0.15
    )
    assert float(present(learned.cost_usd)["expected"]) == pytest.approx(
        float(present(second.cost_usd)), rel=0.15
    )


def test_what_parts_repeat_of_a_recording_without_pauses_is_planned_for(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    from audiobatch.planning.forecast import forecast
    from tests.running import write_wav

    write_wav(tmp_path / "in" / "hum.wav", seconds=60.0)
    how: dict[str, Any] = {"modalities": "text", "max_part": 0.25}
    spec = spec_of(inputs=[str(tmp_path / "in")], output=str(tmp_path / "out"), **azure(emulator), **how)
    planned = forecast(spec).tokens["input_audio_tokens"]
    actual = int(the_row(job(emulator, tmp_path, **how))["input_audio_tokens"])
    assert 600 * 1.15 < actual <= planned.high


def test_a_follow_up_to_a_reply_whose_sound_is_gone_is_planned_by_its_words(
    emulator: EmulatorProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked for with sound, though text was wanted, and hears nothing."""
    import time

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.planning.forecast import forecast

    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("Tell me of rivers.")
    where = {"inputs": [str(tmp_path / "in")], "output": str(tmp_path / "out"), **azure(emulator)}
    run_job(**where)
    spec = JobSpec(**where, prompt=("", "Shorter, please."), keep=True)
    alive = forecast(spec).tokens
    later_s = time.time() + 7 * 86_400
    monkeypatch.setattr(time, "time", lambda: later_s)
    gone = forecast(spec).tokens
    assert alive["output_audio_tokens"].expected == 0 < gone["output_audio_tokens"].expected
    assert alive["output_audio_tokens"].high == gone["output_audio_tokens"].high > 0, "it may be gone by then"
    assert alive["input_audio_tokens"].expected > 0 == gone["input_audio_tokens"].high
    last = rows_of(run_job(**where, prompt=("", "Shorter, please."), keep=True))[-1]
    for kind in KINDS:
        assert gone[kind].low <= int(last[kind]) <= gone[kind].high, kind


def test_the_length_of_parts_is_part_of_what_was_asked_for(emulator: EmulatorProcess, tmp_path: Path) -> None:
    from audiobatch.errors import ConfigError

    talk(tmp_path / "in" / "talk.wav", 40)
    job(emulator, tmp_path, modalities="text")
    with pytest.raises(ConfigError, match="max-part"):
        job(emulator, tmp_path, modalities="text", max_part=0.3)


def test_parts_with_a_flaw_are_asked_again_alone(tmp_path: Path) -> None:
    talk(tmp_path / "in" / "talk.wav", 90)
    seen = []

    def reply(_path: str, body: bytes, _before: int) -> object:
        again = body in seen
        seen.append(body)
        reason = "stop" if again or len(seen) != 2 else "length"
        return completion(f"Words {len(seen)}.", sound_s=1.0, finish_reason=reason)

    with bare_server(reply) as server:
        summary = run_job(
            inputs=[str(tmp_path / "in")], output=str(tmp_path / "out"), provider="openai", endpoint=server.url,
            max_part=0.5, on_check=("truncated=redo",),
        )  # fmt: skip
    row = the_row(summary)
    assert (row["parts"], row["attempts"], row["checks"]) == ("4", "5", "")
    assert len(server.bodies) == 5
    assert len(set(server.bodies)) == 4


def test_the_words_of_a_long_recording_are_joined_with_their_own_times(tmp_path: Path) -> None:
    talk(tmp_path / "in" / "talk.wav", 90)
    written = []

    def reply(path: str, _body: bytes, _before: int) -> object:
        if not path.endswith("transcriptions"):
            return completion("Somebody talks.")
        written.append(path)
        text = f"stretch {len(written)}"
        segments = [{"start": 1.0, "end": 2.5, "text": text}]
        return {"text": text, "segments": segments, "usage": {"type": "duration", "seconds": 25}}

    with bare_server(reply) as server:
        summary = run_job(
            inputs=[str(tmp_path / "in")], output=str(tmp_path / "out"), provider="openai", endpoint=server.url,
            modalities="text", max_part=0.5, transcribe_inputs="whisper-1",
        )  # fmt: skip
    row = the_row(summary)
    assert row["input_transcript"] == "stretch 1 stretch 2 stretch 3 stretch 4"
    srt = local(summary.output / row["transcript_file"]).with_suffix(".srt").read_text()
    times = re.findall(r"(\d\d):(\d\d):(\d\d),(\d{3}) -->", srt)
    at = [int(m) * 60 + int(s) + int(ms) / 1000 for _, m, s, ms in times]
    starts = [
        60 * int(minutes) + int(seconds)
        for minutes, seconds in re.findall(r"^\[0:(\d\d):(\d\d)\]", row["transcript"], re.MULTILINE)
    ]
    assert len(at) == 4
    assert [cut - start for cut, start in zip(at, starts, strict=True)] == pytest.approx([1.0] * 4, abs=1.01)
    assert len([path for path in server.paths if path.endswith("transcriptions")]) == 4


def test_what_the_sessions_of_all_parts_wrote_down_is_the_recording_s_words(
    emulator: EmulatorProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from audiobatch.transports.realtime import RealtimeTransport

    send = RealtimeTransport.send

    async def written(self: Any, request: Request, *arguments: Any, **named: Any) -> Reply:
        reply = await send(self, request, *arguments, **named)
        return replace(reply, input_transcript=f"stretch {request.item_id[-1]}")

    monkeypatch.setattr(RealtimeTransport, "send", written)
    talk(tmp_path / "in" / "talk.wav", 90)
    model = {"deployment": "gpt-realtime", "model": "gpt-realtime", "transcription_model": "whisper-1"}
    row = the_row(job(emulator, tmp_path, modalities="text", transport="realtime", **model))
    assert row["input_transcript"] == "stretch 1 stretch 2 stretch 3 stretch 4"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.timeout(900)
def test_memory_does_not_grow_with_the_length(
    emulator: EmulatorProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten minutes in parts of one minute; two hours in parts of ten by `AUDIOBATCH_FULL=1`."""
    seconds, max_part = (7200, 10) if FULL else (600, 1)
    peaks = {}
    for name, length in (("idle", 10), ("long", seconds)):
        folder = tmp_path / name
        talk(folder / "in" / "talk.wav", length)
        started = time.monotonic()
        with child(emulator, folder, max_part) as running:
            out, err = running.communicate(timeout=800)
        assert running.returncode == 0, err
        peaks[name] = int(out) / 1024
        elapsed_s = time.monotonic() - started
        (folder / "in" / "talk.wav").unlink()
    above = peaks["long"] - peaks["idle"]
    with capsys.disabled():
        print(
            f"\n{seconds / 60:.0f} minutes through the engine in {elapsed_s:.1f} s: {peaks['long']:.0f} MB, "
            f"{above:.0f} MB above idle"
        )
    assert above < 300


def test_a_part_that_cannot_be_written_is_kept_and_brought_home(
    emulator: EmulatorProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from audiobatch.errors import StorageError

    talk(tmp_path / "in" / "talk.wav", 60)
    write_many = LocalStorage.write_many

    def full(self: LocalStorage, files: Any, **how: Any) -> Any:
        if any(path.startswith("parts/") for path, _ in files):
            raise StorageError("no space left")
        return write_many(self, files, **how)

    with monkeypatch.context() as broken:
        broken.setattr(LocalStorage, "write_many", full)
        first = job(emulator, tmp_path)
    assert first.exit_code == 2
    bought = [call for call in emulator.settled_journal(1) if call["billed"]]
    second = job(emulator, tmp_path)
    parts = int(the_row(second)["parts"])
    assert (the_row(second)["status"], parts) == ("succeeded", 3)
    assert len([call for call in emulator.settled_journal(parts) if call["billed"]]) == parts
    assert 1 <= len(bought) <= 2


def test_a_redo_of_a_long_recording_buys_every_part_anew_and_keeps_the_old_whole(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    talk(tmp_path / "in" / "talk.wav", 40)
    job(emulator, tmp_path)
    again = job(emulator, tmp_path, voice="echo", redo=True)
    row = the_row(again)
    assert (row["version"], row["parts"], row["voice"]) == ("2", "2", "echo")
    assert len(emulator.settled_journal(4)) == 4
    assert local(again.output / "versions" / "v1" / row["audio_file"]).exists()


def test_the_folder_verifies_and_a_purge_leaves_no_word(emulator: EmulatorProcess, tmp_path: Path) -> None:
    from tests.running import audiobatch

    talk(tmp_path / "in" / "talk.wav", 40)
    job(emulator, tmp_path, modalities="text", transcribe_inputs="whisper-1")
    verified = audiobatch("verify", tmp_path / "out")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    purged = audiobatch("purge", tmp_path / "out", "--yes")
    assert purged.returncode == 0, purged.stderr
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file():
            assert b"I could make out no words" not in path.read_bytes(), path
