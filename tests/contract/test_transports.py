"""One job, every transport: chat completions, the same streamed, and Realtime sessions mean the same by a row."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from audiobatch.config.jobspec import JobSpec
from audiobatch.config.settings import Environment, resolve
from audiobatch.errors import ConfigError
from audiobatch.execution.job import run
from audiobatch_emulator.process import EmulatorProcess
from tests.contract.emulator_clients import tone_wav
from tests.narrowing import local

WAYS: dict[str, dict[str, Any]] = {
    "chat": {"deployment": "gpt-audio-1.5"},
    "streamed": {"deployment": "gpt-audio-1.5", "stream": True},
    "realtime": {"deployment": "gpt-realtime", "transport": "realtime"},
}
#: What a row says apart from how and when it was made.
SAME = (
    *("item_id", "turn", "status", "prompt", "transcript", "audio_file", "audio_duration_s", "checks"),
    *("voice", "format", "finish_reason", "error_type", "attempts", "perhaps_billed"),
    *("output_text_tokens", "output_audio_tokens", "input_audio_tokens", "input_sha256"),
)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch, server: EmulatorProcess) -> None:
    for name in ("OPENAI_API_VERSION", "AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_DEPLOYMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", server.api_key)


def inputs(folder: Path) -> Path:
    folder.mkdir()
    (folder / "short.wav").write_bytes(tone_wav(1.5))
    (folder / "longer.wav").write_bytes(tone_wav(3.0, rate_hz=24_000))
    return folder


def job(server: EmulatorProcess, way: str, source: Path, output: Path, **settings: Any) -> JobSpec:
    chosen = {
        "inputs": (str(source),),
        "output": str(output),
        "provider": "azure",
        "endpoint": server.base_url,
        "reports": (),
        "send_silent": True,  # a tone is no speech
        **WAYS[way],
        **settings,
    }
    return JobSpec.model_validate(chosen)


async def rows_of(spec: JobSpec) -> list[dict[str, str]]:
    summary = await run(spec)
    with local(summary.manifest).open(encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def meaning(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: row[name] for name in SAME} for row in rows]


@pytest.mark.parametrize("audio_format", ["wav", "pcm16"])
async def test_a_folder_gives_the_same_rows(
    server: EmulatorProcess, tmp_path: Path, audio_format: str
) -> None:
    source = inputs(tmp_path / "in")
    found = {}
    for name in WAYS:
        prompts = ("What do you hear?", "How long was it?")
        spec = job(server, name, source, tmp_path / name, prompt=prompts, format=audio_format)
        found[name] = await rows_of(spec)
    for rows in found.values():
        assert [row["status"] for row in rows] == ["succeeded"] * 4
        assert "3.0 seconds" in rows[0]["transcript"]
        assert "3.0 seconds" in rows[1]["transcript"]  # the follow-up knows of the recording
        assert float(rows[0]["audio_duration_s"]) > 5
        assert (rows[1]["audio_file"], rows[1]["checks"]) == ("", "")
    first_turns = {name: meaning(rows)[::2] for name, rows in found.items()}
    assert first_turns["chat"] == first_turns["streamed"] == first_turns["realtime"]
    # A session counts its own earlier words as the chat does an audio id.
    follow_ups = {name: meaning(rows)[1::2] for name, rows in found.items()}
    assert follow_ups["chat"] == follow_ups["streamed"] == follow_ups["realtime"]
    assert [rows[0]["transport"] for rows in found.values()] == ["chat", "chat", "realtime"]
    assert all(float(row["cost_usd"]) > 0 for rows in found.values() for row in rows)
    for name in WAYS:
        audio = tmp_path / name / found[name][0]["audio_file"]
        assert audio.read_bytes() == (tmp_path / "chat" / found["chat"][0]["audio_file"]).read_bytes()
        assert not list((tmp_path / name).glob("replies/*"))


@pytest.mark.parametrize("audio_format", ["mp3", "flac", "opus", "aac"])
async def test_every_format_is_made(
    server: EmulatorProcess, tmp_path: Path, way: str, audio_format: str
) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "tea.txt").write_text("Is tea better than coffee?")
    (row,) = await rows_of(job(server, way, prompts, tmp_path / "out", format=audio_format))
    assert row["status"] == "succeeded"
    assert row["audio_file"].endswith(f".{audio_format}")
    assert float(row["audio_duration_s"]) == pytest.approx(10, abs=3)


async def test_prompts_are_read_aloud_word_for_word(
    server: EmulatorProcess, tmp_path: Path, way: str
) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "hello.txt").write_text("Thank you for calling. Please hold the line.")
    (row,) = await rows_of(job(server, way, prompts, tmp_path / "out", read_aloud=True))
    assert row["transcript"] == "Thank you for calling. Please hold the line."
    assert row["checks"] == ""


async def test_a_second_run_sends_nothing(server: EmulatorProcess, tmp_path: Path, way: str) -> None:
    spec = job(server, way, inputs(tmp_path / "in"), tmp_path / "out")
    first = await run(spec)
    second = await run(spec)
    assert (first.sent, second.sent, second.skipped_done) == (2, 0, 2)
    assert len(server.settled_journal(2)) == 2


async def test_without_a_key_a_token_is_used(
    server: EmulatorProcess, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AZURE_OPENAI_API_KEY")
    for name, value in server.identity_env.items():
        monkeypatch.setenv(name, value)
    rows = await rows_of(job(server, way, inputs(tmp_path / "in"), tmp_path / "out"))
    assert [row["status"] for row in rows] == ["succeeded"] * 2


async def test_openai_s_own_address_works_too(
    server: EmulatorProcess, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", server.api_key)
    place = {"provider": "openai", "endpoint": f"{server.base_url}/v1"}
    rows = await rows_of(job(server, way, inputs(tmp_path / "in"), tmp_path / "out", **place))
    assert [row["status"] for row in rows] == ["succeeded"] * 2
    assert {row["provider"] for row in rows} == {"openai"}


@pytest.mark.parametrize("way", ["chat", "streamed"], indirect=True)
@pytest.mark.parametrize("trusted", [True, False])
async def test_a_service_is_trusted_by_its_certificate_alone(
    server: EmulatorProcess, tmp_path: Path, way: str, trusted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if trusted:
        monkeypatch.setenv("SSL_CERT_FILE", server.certificate)
    else:
        monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "tea.txt").write_text("Is tea better than coffee?")
    spec = job(server, way, prompts, tmp_path / "out", endpoint=server.https_base_url)
    summary = await run(spec)
    assert (summary.succeeded, summary.exit_code) == ((1, 0) if trusted else (0, 4))
    assert trusted or "CERTIFICATE_VERIFY_FAILED" in summary.message
    assert len(server.settled_journal(int(trusted))) == int(trusted)  # nothing is sent to a stranger


@pytest.mark.parametrize(
    ("do", "status", "error_type"),
    [
        ({"reset": "in"}, "unknown", "disconnected"),
        ({"corrupt": "base64"}, "failed", "bad_reply"),
        ({"corrupt": "json"}, "failed", "bad_reply"),
        ({"corrupt": "html"}, "failed", "bad_reply"),
    ],
)
async def test_half_a_reply_is_kept_beside_its_item(
    server: EmulatorProcess, tmp_path: Path, way: str, do: dict[str, Any], status: str, error_type: str
) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "tea.txt").write_text("Is tea better than coffee?")
    server.put_faults({"do": do})
    (row,) = await rows_of(job(server, way, prompts, tmp_path / "out", on_unknown="skip"))
    assert (row["status"], row["error_type"]) == (status, error_type)
    assert row["perhaps_billed"] == ("1" if status == "unknown" else "0")
    kept = [path for path in (tmp_path / "out" / "replies").iterdir() if path.stat().st_size]
    if way == "chat" and do == {"reset": "in"}:
        return  # a body that breaks off may not even have begun for its reader
    assert len(kept) == 1
    assert not kept[0].name.endswith(".part")


@pytest.mark.parametrize("do", [{"reset": "in"}, {"status": 503}])
async def test_what_may_pass_is_tried_again(
    server: EmulatorProcess, tmp_path: Path, way: str, do: dict[str, Any]
) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "tea.txt").write_text("Is tea better than coffee?")
    server.put_faults({"when": {"attempt_below": 1}, "do": do})
    (row,) = await rows_of(job(server, way, prompts, tmp_path / "out"))
    assert (row["status"], row["attempts"]) == ("succeeded", "2")
    assert row["perhaps_billed"] == ("1" if "reset" in do else "0")
    assert not list((tmp_path / "out").glob("replies/*"))


@pytest.mark.parametrize("way", ["streamed"], indirect=True)
@pytest.mark.parametrize(
    ("do", "status"), [({"corrupt": "no_done"}, "succeeded"), ({"reset": "in"}, "unknown")]
)
async def test_a_stream_needs_its_finish_reason_not_its_done(
    server: EmulatorProcess, tmp_path: Path, way: str, do: dict[str, Any], status: str
) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "tea.txt").write_text("Is tea better than coffee?")
    server.put_faults({"do": do})
    (row,) = await rows_of(job(server, way, prompts, tmp_path / "out", on_unknown="skip"))
    assert row["status"] == status


async def test_what_recordings_say_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the emulator's real voice and recognizer: what one item speaks, the other hears."""
    from audiobatch.transports.chat import ChatTransport

    monkeypatch.setattr(ChatTransport, "send", None)  # nothing of this goes over chat
    with EmulatorProcess() as real:
        monkeypatch.setenv("AZURE_OPENAI_API_KEY", real.api_key)
        prompts = tmp_path / "prompts"
        prompts.mkdir()
        (prompts / "spoken.txt").write_text("Please open the window and close the door.")
        aloud = job(real, "realtime", prompts, tmp_path / "voice", read_aloud=True, voice="sage")
        await rows_of(aloud)
        heard = job(
            real,
            "realtime",
            tmp_path / "voice" / "audio",
            tmp_path / "out",
            transcription_model="whisper-1",
            vad="server_vad",
        )
        (row,) = await rows_of(heard)
    # The emulator's recognizer is a stand-in: it understands about three words of four.
    assert {"please", "open"} <= set(row["input_transcript"].split())
    assert row["transport"] == "realtime"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"transport": "realtime", "stream": True}, "always streamed"),
        ({"transport": "realtime", "temperature": 1.0}, "no temperature"),
        ({"transport": "realtime", "api_version": "2025-01-01-preview"}, "OPENAI_API_VERSION=v1"),
        ({"transcription_model": "whisper-1"}, "transport realtime"),
        ({"vad": "server_vad"}, "transport realtime"),
    ],
)
def test_settings_that_do_not_fit_the_transport_are_told(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve(settings, environment=Environment(variables={}))


def test_the_default_model_is_the_transport_s() -> None:
    environment = Environment(variables={})
    assert resolve({}, environment=environment).spec.model == "gpt-audio-1.5"
    assert resolve({"transport": "realtime"}, environment=environment).spec.model == "gpt-realtime"
    chosen = resolve({"transport": "realtime", "model": "gpt-realtime-2"}, environment=environment).spec
    assert chosen.model == "gpt-realtime-2"
    assert json.loads(chosen.model_dump_json())["transport"] == "realtime"


async def test_the_transport_is_no_reason_to_buy_again(server: EmulatorProcess, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    (prompts / "tea.txt").write_text("Is tea better than coffee?")
    same = {"model": "gpt-realtime"}
    first = await run(job(server, "realtime", prompts, tmp_path / "out", **same))
    again = await run(job(server, "chat", prompts, tmp_path / "out", **same))
    assert (first.sent, again.sent, again.skipped_done) == (1, 0, 1)
