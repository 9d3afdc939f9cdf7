"""The command line as a stranger meets it."""

import sys
from pathlib import Path

import pytest

from audiobatch.config.jobspec import JobSpec
from audiobatch.config.settings import read_job_file
from audiobatch_emulator.process import EmulatorProcess
from audiobatch_flows.cli.main import COMMANDS
from audiobatch_flows.cli.options import SECTIONS, flags_of
from tests.running import audiobatch, last_json, read_manifest, write_wav


@pytest.fixture
def service(emulator: EmulatorProcess) -> dict[str, str]:
    """The environment of a user who has set up Azure with a key."""
    return {
        "AZURE_OPENAI_ENDPOINT": emulator.base_url,
        "AZURE_OPENAI_API_KEY": emulator.api_key,
        "AZURE_OPENAI_DEPLOYMENT_NAME": "gpt-audio-1.5",
    }


def test_help_lists_every_command_with_its_line() -> None:
    done = audiobatch("--help")
    assert done.returncode == 0
    for name, line in COMMANDS.items():
        assert name in done.stdout
        assert line in done.stdout


def test_help_imports_nothing_heavy() -> None:
    import subprocess

    program = (
        "import sys\n"
        "from audiobatch_flows.cli.main import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'prefect', 'pandas', 'openai', 'sqlalchemy', 'numpy', 'pydantic', 'aiohttp'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


#: Flags of `run` alone: who does a job's work is not of the job.
WHO_WORKS = {"workers", "work_pool", "dask"}


def test_every_setting_of_a_job_is_a_flag_in_the_help() -> None:
    done = audiobatch("run", "--help")
    for field in JobSpec.model_fields:
        if field not in ("inputs", "turns", "deployments"):
            assert flags_of(field)[0] in done.stdout, field
    for section, fields in SECTIONS.items():
        assert f"{section}:" in done.stdout
        assert set(fields) - WHO_WORKS <= set(JobSpec.model_fields)


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--normalize=-16"], {"normalize": "-16.0", "inputs": "lines"}),
        (["--normalize"], {"normalize": "-18.0", "inputs": "lines"}),
        (["--normalize=-16.5", "--verify-speech"], {"normalize": "-16.5", "inputs": "lines"}),
        (["--verify-speech"], {"verify_speech": "gpt-4o-mini-transcribe", "inputs": "lines"}),
        (["--verify-speech=whisper-1"], {"verify_speech": "whisper-1", "inputs": "lines"}),
    ],
)
def test_a_value_that_may_be_left_out_never_takes_the_next_word(
    arguments: list[str], shown: dict[str, str], tmp_path: Path
) -> None:
    done = audiobatch("config", "show", "--provider", "local", *arguments, "lines", cwd=tmp_path)
    values = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines() if line.split()[1:]}
    assert {name: values.get(name) for name in shown} == shown, done.stdout + done.stderr


def test_a_mistyped_command_is_answered_with_the_nearest(tmp_path: Path) -> None:
    done = audiobatch("rum", cwd=tmp_path)
    assert done.returncode == 2
    assert "Did you mean 'run'?" in done.stderr


def test_init_writes_a_job_file_that_is_valid_and_never_overwrites(tmp_path: Path) -> None:
    assert audiobatch("init", cwd=tmp_path).returncode == 0
    values = read_job_file(tmp_path / "job.toml")
    assert values["provider"] == "local"
    text = (tmp_path / "job.toml").read_text()
    for field in JobSpec.model_fields:
        assert field in text
    again = audiobatch("init", cwd=tmp_path)
    assert again.returncode == 2
    assert "--force" in again.stderr


def test_a_job_file_says_which_key_is_wrong_and_what_is_allowed(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('inputs = ["x"]\nformat = "wma"\n')
    done = audiobatch("run", "--job", "job.toml", "--no-prefect", "--provider", "local", cwd=tmp_path)
    assert done.returncode == 2
    for word in ("job.toml", "format", "'wma'", "'wav'", "'mp3'"):
        assert word in done.stderr
    (tmp_path / "job.toml").write_text('inputs = ["x"]\nvoise = "echo"\n')
    done = audiobatch("run", "--job", "job.toml", "--no-prefect", cwd=tmp_path)
    assert "did you mean 'voice'?" in done.stderr
    (tmp_path / "job.toml").write_text('api_key = "secret"\n')
    assert "environment" in audiobatch("run", "--job", "job.toml", "--no-prefect", cwd=tmp_path).stderr


def test_flags_win_over_the_job_file_and_that_over_the_environment(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('voice = "echo"\nformat = "mp3"\n')
    done = audiobatch(
        *("config", "show", "--job", "job.toml", "--voice", "coral"),
        env={
            "AUDIOBATCH_FORMAT": "flac",
            "AUDIOBATCH_SEED": "7",
            "AZURE_OPENAI_API_KEY": "canary-0123456789",
        },
        cwd=tmp_path,
    )
    shown = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert "coral" in shown["voice"]
    assert "flag --voice" in shown["voice"]
    assert "mp3" in shown["format"]
    assert "job.toml" in shown["format"]
    assert "AUDIOBATCH_SEED" in shown["seed"]
    assert "canary-0123456789" not in done.stdout
    assert "6789" in shown["credential"]


def test_a_run_a_second_run_status_and_report(
    service: dict[str, str], emulator: EmulatorProcess, tmp_path: Path
) -> None:
    write_wav(tmp_path / "in" / "memo.wav", seconds=0.5)
    command = ("run", "in", "--no-prefect", "--json", "--output", "out")
    first = audiobatch(*command, env=service, cwd=tmp_path)
    assert first.returncode == 0, first.stderr
    found = last_json(first.stdout)
    assert list(found) == [
        *("run_id", "output", "manifest", "exit_code", "items", "sent", "succeeded", "failed", "refused"),
        *("unknown", "pending", "skipped_done", "cost_usd", "input_audio_s", "output_audio_s", "elapsed_s"),
        *("stopped_by", "finished"),
    ]
    assert (found["sent"], found["succeeded"], found["exit_code"]) == (1, 1, 0)
    second = audiobatch(*command, env=service, cwd=tmp_path)
    assert (last_json(second.stdout)["sent"], second.returncode) == (0, 0)
    assert len(emulator.journal()) == 1
    assert "succeeded" in audiobatch("status", "out", cwd=tmp_path).stdout
    (tmp_path / "out" / "manifest.csv").unlink()
    assert audiobatch("report", "out", cwd=tmp_path).returncode == 0
    assert read_manifest(tmp_path / "out" / "manifest.csv")[0]["status"] == "succeeded"


def test_a_run_with_refused_inputs_ends_with_3(service: dict[str, str], tmp_path: Path) -> None:
    write_wav(tmp_path / "in" / "good.wav", seconds=0.3)
    (tmp_path / "in" / "bad.wav").write_bytes(b"")
    (tmp_path / "in" / "worse.wav").write_bytes(b"")
    done = audiobatch("run", "in", "--no-prefect", "--output", "out", env=service, cwd=tmp_path)
    assert done.returncode == 3
    assert "refused" in done.stdout
    assert "audiobatch: refused: bad.wav and 1 more: it is empty (0 bytes)\n" in done.stderr


def test_a_run_says_why_rows_failed_the_most_usual_reasons_first(
    service: dict[str, str], emulator: EmulatorProcess, tmp_path: Path
) -> None:
    for name in "abcdefg":
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / f"{name}.txt").write_text(f"Say {name}.")
    rules = []
    for name in "cdefg":
        body = {"error": {"message": "No." if name in "fg" else f"Not {name}.", "code": "invalid_value"}}
        rules.append({"when": {"text": f"Say {name}."}, "do": {"status": 400, "body": body}})
    emulator.put_faults(*rules)
    flags = ("--no-prefect", "--max-failures", "100%", "--output", "out")
    done = audiobatch("run", "in", *flags, env=service, cwd=tmp_path)
    assert done.returncode == 3
    said = [line for line in done.stderr.splitlines() if line.startswith("audiobatch: ")]
    assert said == [
        "audiobatch: failed: f.txt and 1 more: No.",
        "audiobatch: failed: c.txt: Not c.",
        "audiobatch: failed: d.txt: Not d.",
        "audiobatch: other reasons are in the manifest's column error_message",
    ]


def test_results_are_on_stdout_and_everything_else_on_stderr(service: dict[str, str], tmp_path: Path) -> None:
    write_wav(tmp_path / "in" / "memo.wav", seconds=0.3)
    done = audiobatch(
        "run", "in", "--no-prefect", "--json", "--quiet", "--output", "o", env=service, cwd=tmp_path
    )
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_both_credentials_at_once_must_be_told_apart(service: dict[str, str], tmp_path: Path) -> None:
    write_wav(tmp_path / "in" / "memo.wav", seconds=0.3)
    both = {**service, "IDENTITY_ENDPOINT": "http://127.0.0.1:9", "IDENTITY_HEADER": "x"}
    done = audiobatch("run", "in", "--no-prefect", env=both, cwd=tmp_path)
    assert done.returncode == 2
    assert "--auth key or --auth entra" in done.stderr


def test_status_of_a_folder_that_is_none_of_ours_says_so(tmp_path: Path) -> None:
    done = audiobatch("status", ".", cwd=tmp_path)
    assert done.returncode == 2
    assert "job.json" in done.stderr
