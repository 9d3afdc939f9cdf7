"""Does an installation do its job? The README's first command, each container and codec, reports, the doctor.

`.ci/smoke` runs this against wheels on every supported Python; by hand, against the checkout:
`uv run pytest -c tests/smoke.ini tests/smoke`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import openpyxl
import pytest

import audiobatch
from audiobatch.audio.encode import REPLY_FORMATS
from audiobatch.audio.probe import EXTENSIONS, probe
from audiobatch.reports.waveforms import BINS, HEIGHT, STEP
from audiobatch_emulator.process import EmulatorProcess
from tests import audio_corpus
from tests.running import azure, read_manifest, rows_of, run_job, write_wav

SAMPLES = Path(__file__).resolve().parents[2] / "sample_inputs"
PROMPT = "Describe in detail the spoken audio input."


def command(*arguments: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """`audiobatch` as this interpreter's environment has it, with a new Prefect home."""
    program = Path(sys.executable).with_name("audiobatch")
    ended = subprocess.run(
        [str(program), *arguments],
        cwd=cwd,
        env={**os.environ, "PREFECT_HOME": str(cwd / "prefect"), "COLUMNS": "200", **env},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    print(f"$ audiobatch {' '.join(arguments)}\n{ended.stdout}{ended.stderr}[exit code {ended.returncode}]")
    return ended


def pictures(report: Path) -> int:
    return report.read_text("utf-8").count(f'viewBox="0 0 {BINS * STEP} {HEIGHT}"')


@pytest.mark.skipif("AUDIOBATCH_SMOKE" not in os.environ, reason="only for an installed wheel")
def test_the_package_under_test_is_the_installed_one() -> None:
    assert "site-packages" in Path(audiobatch.__file__ or "").parts


def test_modules_of_the_user_s_that_are_called_as_ours_once_were_are_in_nobody_s_way(tmp_path: Path) -> None:
    for name in ("pipeline.py", "audio.py", "limits.py", "flows/__init__.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"raise SystemExit({name!r} + ' was imported')\n")
    write_wav(tmp_path / "in" / "memo.wav", seconds=1.0)
    words = ("run", "in", "--provider", "local")
    ended = command(*words, cwd=tmp_path, PYTHONPATH=".")
    assert ended.returncode == 0, ended.stderr
    assert "was imported" not in ended.stdout + ended.stderr
    assert read_manifest(tmp_path / "outputs" / "in" / "manifest.csv")[0]["status"] == "succeeded"


@pytest.mark.skipif("AUDIOBATCH_SMOKE" not in os.environ, reason="only for an installed wheel")
@pytest.mark.parametrize("name", ["pipeline", "flows"])
def test_the_wheel_puts_nothing_of_a_common_name_on_the_import_path(name: str) -> None:
    program = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({name!r}) is not None)"
    assert subprocess.run([sys.executable, "-P", "-c", program], check=False).returncode == 0


def test_the_public_names_are_there() -> None:
    import audiobatch_flows

    for package in (audiobatch, audiobatch_flows):
        assert {name for name in package.__all__ if getattr(package, name, None) is None} == set()


def test_the_readme_s_first_command_makes_all_reports_and_sends_nothing_twice(tmp_path: Path) -> None:
    shutil.copytree(SAMPLES, tmp_path / "sample_inputs")
    words = ["run", "sample_inputs/recordings", "--provider", "local", "--prompt", PROMPT]
    first = command(*words, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout.split()[:4] == ["done", "10", "failed", "0"]
    output = tmp_path / "outputs" / "recordings"
    rows = read_manifest(output / "manifest.csv")
    assert [row["status"] for row in rows] == ["succeeded"] * 10
    for row in rows:
        assert probe(output / row["audio_file"]).media.duration_s == pytest.approx(
            float(row["audio_duration_s"]), abs=0.05
        )
        assert (output / row["transcript_file"]).read_text("utf-8") == row["transcript"]
    assert pictures(output / "report.html") == 20
    sheet = openpyxl.load_workbook(output / "manifest.xlsx").worksheets[0]
    assert [cell.value for cell in sheet["A"]][1:11] == [row["item_id"] for row in rows]
    again = command(*words, cwd=tmp_path)
    assert again.returncode == 0
    assert "done before       10" in again.stdout
    for said in (first, again):
        assert "Traceback" not in said.stdout + said.stderr


def test_every_container_is_read_and_what_is_none_is_refused(
    emulator: EmulatorProcess, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    taken = {}
    for case in audio_corpus.make(tmp_path / "corpus"):
        if not case.refusal and not case.note and case.container not in taken:
            taken[case.container] = shutil.copy(case.path, folder)
    assert set(taken) == set(EXTENSIONS)
    (folder / "notes.wav").write_text("these are words")
    env = {
        "AZURE_OPENAI_API_KEY": emulator.api_key,
        "AZURE_OPENAI_ENDPOINT": emulator.base_url,
        "AZURE_OPENAI_DEPLOYMENT_NAME": "gpt-audio-1.5",
    }
    ended = command("run", "in", "--no-prefect", "--format", "mp3", cwd=tmp_path, **env)
    output = tmp_path / "outputs" / "in"
    found = {row["input"]: row for row in read_manifest(output / "manifest.csv")}
    assert {name: row["error_message"] for name, row in found.items() if row["status"] != "succeeded"} == {
        "notes.wav": "it is text, not audio"
    }
    assert len(found) == len(taken) + 1
    assert ended.returncode == 3
    # Browsers play most of the recordings and every reply: what has a player has a picture, but for the text.
    players = (output / "report.html").read_text("utf-8").count('class="play"')
    assert pictures(output / "report.html") == players - 1 > len(taken)


@pytest.mark.parametrize("reply_format", REPLY_FORMATS)
def test_every_reply_format_is_written(reply_format: str, emulator: EmulatorProcess, tmp_path: Path) -> None:
    write_wav(tmp_path / "in" / "memo.wav", seconds=1.0)
    summary = run_job(
        inputs=[str(tmp_path / "in")], output=str(tmp_path / "out"), format=reply_format, **azure(emulator)
    )
    (row,) = rows_of(summary)
    assert (row["status"], row["checks"], row["error_message"]) == ("succeeded", "", "")
    media = probe(tmp_path / "out" / row["audio_file"]).media
    assert media.duration_s == pytest.approx(float(row["audio_duration_s"]), abs=0.15)


def test_the_doctor_finds_every_codec(tmp_path: Path) -> None:
    ended = command("doctor", "--provider", "local", "--output", "out", cwd=tmp_path)
    assert ended.returncode == 0
    (codecs,) = (line for line in ended.stdout.splitlines() if " codecs " in line)
    assert codecs.startswith("ok")
    for name in (*EXTENSIONS, *REPLY_FORMATS):
        assert name in codecs
