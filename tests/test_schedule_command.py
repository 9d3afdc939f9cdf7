"""`audiobatch schedule` before any server is asked: expressions, zones, names, jobs."""

import zoneinfo
from pathlib import Path
from typing import Any

import pytest

from audiobatch.config.jobspec import JobSpec
from audiobatch.errors import ConfigError
from audiobatch_flows import cron, registered_job
from tests.running import audiobatch, spec_of


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ("0 2 * * *", "0 2 * * *"),
        ("  */15  8-18 * * mon-fri ", "*/15 8-18 * * mon-fri"),
        ("0,30 0 1 jan,JUL 7", "0,30 0 1 jan,JUL 7"),
        ("@daily", "0 0 * * *"),
        ("1-59/2 * * * *", "1-59/2 * * * *"),
    ],
)
def test_expressions_that_prefect_understands_are_taken(given: str, fields: str) -> None:
    from prefect.client.schemas.schedules import CronSchedule

    assert cron.checked_cron(given) == fields
    CronSchedule(cron=fields)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("* * * *", "has 4 fields, and needs 5"),
        ("* * * * * */5", "has 6 fields"),
        ("61 2 * * *", "'61' is no minute: 0 to 59"),
        ("0 24 * * *", "'24' is no hour: 0 to 23"),
        ("0 2 0 * *", "'0' is no day of the month"),
        ("0 2 * foo *", "'foo' is no month: 1 to 12 or jan to dec"),
        ("0 2 * * 8", "'8' is no day of the week"),
        ("*/0 * * * *", "is no minute"),
        ("5-1 * * * *", "is no minute"),
        ("R * * * *", "is no minute"),
        ("*-5 * * * *", "is no minute"),
        ("nightly", "has 1 fields"),
    ],
)
def test_what_is_wrong_with_an_expression_is_said_with_an_example(given: str, told: str) -> None:
    with pytest.raises(ConfigError, match="every night at two") as refused:
        cron.checked_cron(given)
    assert told in refused.value.message


def test_a_zone_is_one_that_exists_and_the_nearest_is_offered() -> None:
    assert cron.checked_timezone("Europe/Berlin") == "Europe/Berlin"
    for given, near in (
        ("berlin", "Europe/Berlin"),
        ("new york", "America/New_York"),
        ("Eurpoe/Rome", "Europe/Rome"),
    ):
        with pytest.raises(ConfigError, match=f"did you mean {near}"):
            cron.checked_timezone(given)
    with pytest.raises(ConfigError, match="names are like"):
        cron.checked_timezone("../etc/passwd")


def test_without_a_zone_it_is_this_machine_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", ":Asia/Tokyo")
    assert cron.local_timezone(tmp_path) == "Asia/Tokyo"
    monkeypatch.setenv("TZ", "CET-1CEST")
    assert cron.local_timezone(tmp_path) == "UTC"
    (tmp_path / "timezone").write_text("Europe/Lisbon\n")
    assert cron.local_timezone(tmp_path) == "Europe/Lisbon"
    zone = tmp_path / "zoneinfo" / "America" / "Lima"
    zone.parent.mkdir(parents=True)
    zone.touch()
    (tmp_path / "localtime").symlink_to(zone)
    assert cron.local_timezone(tmp_path) == "America/Lima"
    assert cron.checked_timezone(None) in zoneinfo.available_timezones()


def test_a_registered_job_has_absolute_paths_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    spec = spec_of(
        inputs=("in", "s3://bucket/more"),
        output="out/x",
        prices="my.toml",
        ledger="ledgers/x.db",
        fields=({"name": "topic"},),
        prompt=("Describe.", "Why?"),
        max_cost="2.50",
        deployments=({"deployment": "a"}, {"deployment": "b", "rpm": 5}),
        endpoint="https://x.openai.azure.com",
        on_check=("silent=redo",),
        modalities="text",
    )
    kept = registered_job.with_absolute_paths(spec)
    assert kept.inputs == (f"{tmp_path}/in", "s3://bucket/more")
    assert (kept.output, kept.prices) == (f"{tmp_path}/out/x", f"{tmp_path}/my.toml")
    assert kept.ledger == f"{tmp_path}/ledgers/x.db"
    parameter = kept.as_parameter()
    assert JobSpec.model_validate(parameter) == kept
    assert "drain_timeout_s" not in parameter
    assert parameter["provider"] == "azure"


def test_without_an_output_it_is_the_one_a_run_would_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert registered_job.with_absolute_paths(JobSpec(inputs=("in",))).output == f"{tmp_path}/outputs/in"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"inputs": ()}, "no input given"),
        ({"inputs": ("-",)}, "standard input"),
        ({"inputs": ("a", "b")}, "need --output"),
        ({"inputs": ("a",), "redo": True}, "--redo would buy"),
    ],
)
def test_jobs_that_no_schedule_can_run_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        registered_job.with_absolute_paths(JobSpec(**settings))


def test_a_name_is_the_output_folder_s_unless_given() -> None:
    spec = JobSpec(inputs=("in",), output="/data/calls out")
    assert registered_job.name_for(spec, None) == "calls out"
    assert registered_job.name_for(spec, "nightly") == "nightly"
    with pytest.raises(ConfigError, match="begins with a letter or digit"):
        registered_job.name_for(spec, "a/b")


def test_without_a_server_it_says_what_to_start(tmp_path: Path) -> None:
    home = {"PREFECT_HOME": str(tmp_path)}
    job = (tmp_path, "--output", tmp_path / "out", "--cron", "@daily", "--provider", "local")
    for arguments in (("list",), job):
        ended = audiobatch("schedule", *arguments, env=home)
        assert ended.returncode == 2
        assert "audiobatch server" in ended.stderr
        assert "export PREFECT_API_URL=" in ended.stderr
    ended = audiobatch("serve", env=home)
    assert ended.returncode == 2
    assert "audiobatch server" in ended.stderr


def test_a_server_that_does_not_answer_is_named() -> None:
    ended = audiobatch("schedule", "list", env={"PREFECT_API_URL": "http://127.0.0.1:9/api"})
    assert ended.returncode == 2
    assert "http://127.0.0.1:9/api (PREFECT_API_URL) does not answer" in ended.stderr


def test_add_may_be_left_out_and_help_says_so() -> None:
    shown = audiobatch("schedule", "--help").stdout
    assert "schedule [add] INPUT… --cron CRON" in shown
    assert "audiobatch serve" in shown
    wrong = audiobatch("schedule", "inbox", "--provider", "local")
    assert wrong.returncode == 2
    assert "--cron" in wrong.stderr


@pytest.mark.parametrize("command", ["schedule", "serve", "server"])
def test_help_imports_no_prefect(command: str) -> None:
    import subprocess
    import sys

    from tests.running import ROOT

    program = (
        "import sys\n"
        "from audiobatch_flows.cli.main import cli\n"
        f"cli.main(args=[{command!r}, '--help'], standalone_mode=False)\n"
        "heavy = [name for name in ('prefect', 'openai', 'pandas', 'sqlalchemy') if name in sys.modules]\n"
        "sys.exit(repr(heavy) if heavy else 0)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert ended.returncode == 0, ended.stderr
