"""`--workers`: others send for a run. In full, by hand: `python -m tests.crash.workers_campaign`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from audiobatch.config.jobspec import JobSpec
from audiobatch.errors import ConfigError
from audiobatch.execution.worker import WorkerParams
from audiobatch_emulator.process import EmulatorProcess
from audiobatch_flows.cli.worker_options import workers_for
from tests.crash.test_many_runs import Company
from tests.postgresql_server import PostgresqlServer
from tests.running import ROOT, audiobatch, last_json, read_manifest, spec_of

PATIENCE_S = 180.0
SHARED = "postgresql+psycopg://me@db.example/audio"


@pytest.fixture
def company(
    emulator: EmulatorProcess, postgresql: PostgresqlServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Company]:
    monkeypatch.setattr(
        "tests.crash.test_many_runs.PATIENCE_S", PATIENCE_S
    )  # there are two starts, one after another
    company = Company(emulator, postgresql, tmp_path)
    yield company
    company.close()


def summary(company: Company, number: int) -> dict[str, Any]:
    return last_json((company.folder / f"{number}.out").read_text())


#: Prefect's server and its worker take minutes to start on a small machine.
LONG = pytest.mark.skipif(
    "AUDIOBATCH_LONG_TESTS" not in os.environ, reason="AUDIOBATCH_LONG_TESTS is not set"
)


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("where", [pytest.param("pool", marks=LONG), "dask"])
def test_of_workers_on_a_pool_or_a_cluster_one_is_killed_and_one_joins_and_every_item_is_done_once(
    where: str, tmp_path: Path
) -> None:
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "tests.crash.workers_campaign", "--on", where, "--items", "80"),
            # Four calls a second leave 50 ms before a second sees five: on a busy machine refusals say nothing.
            *("--rpm", "240", "--lease", "4", "--seconds", "600", "--refused-at-least", "80"),
            *("--senders", "2", "--edge", "2"),  # the late one may come when there is nothing left
            *("--keep", str(tmp_path)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-4000:]


@pytest.mark.timeout(600)
def test_processes_of_this_machine_send_and_the_run_counts_what_all_did(company: Company) -> None:
    texts = company.prompts(12)
    run = company.start("--workers", "2")
    assert run.wait(PATIENCE_S) == 0, company.said(0)
    told = summary(company, 0)
    assert {name: told[name] for name in ("items", "sent", "succeeded", "pending", "exit_code")} == {
        "items": 12,
        "sent": 12,
        "succeeded": 12,
        "pending": 0,
        "exit_code": 0,
    }
    spent = sum(float(cost) for (cost,) in company.rows("SELECT cost_usd FROM attempts"))
    assert told["cost_usd"] == pytest.approx(spent)
    senders = {run_id for (run_id,) in company.rows("SELECT DISTINCT run_id FROM outcomes")}
    assert all(sender.startswith(told["run_id"] + ".") for sender in senders), senders
    assert company.rows("SELECT count(*) FROM workers") == [(0,)]
    rows = read_manifest(company.output / "manifest.csv")
    assert {row["item_id"]: row["status"] for row in rows} == dict.fromkeys(texts, "succeeded")
    assert sum(call["status"] == 200 for call in company.emulator.settled_journal(12)) == 12


@pytest.mark.timeout(600)
def test_ctrl_c_lets_the_workers_calls_end_and_the_same_command_goes_on(company: Company) -> None:
    company.prompts(60)
    company.emulator.put_faults({"do": {"latency_s": 0.5}})
    run = company.start("--workers", "2", "--max-concurrency", "2")
    company.until(lambda: company.rows("SELECT count(*) FROM outcomes")[0][0] > 3, "nothing was sent")
    run.send_signal(signal.SIGINT)
    assert run.wait(PATIENCE_S) == 130, company.said(0)
    told = summary(company, 0)
    assert (told["stopped_by"], told["unknown"]) == ("sigint", 0)
    assert told["succeeded"] + told["pending"] == 60
    assert 0 < told["pending"] < 60
    states = dict(company.rows("SELECT state, count(*) FROM attempts GROUP BY state"))
    assert not states.keys() & {"open", "unknown"}, "calls in flight ended, and all are written down"
    assert states["succeeded"] == told["succeeded"]
    assert len(read_manifest(company.output / "manifest.csv")) == 60
    company.emulator.put_faults()
    again = company.start()
    assert again.wait(PATIENCE_S) == 0, company.said(1)
    assert summary(company, 1)["succeeded"] == told["pending"]
    assert sum(call["status"] == 200 for call in company.emulator.settled_journal(60)) == 60


@pytest.mark.timeout(600)
def test_workers_that_are_all_killed_end_the_run_which_says_so(company: Company) -> None:
    company.prompts(40)
    company.emulator.put_faults({"do": {"latency_s": 1.0}})
    run = company.start("--workers", "1", "--max-concurrency", "1")
    [(pid,)] = company.until(
        lambda: company.rows("SELECT pid FROM workers JOIN attempts USING (run_id) LIMIT 1"),
        "nothing was sent",
    )
    assert pid != run.pid
    os.kill(pid, signal.SIGKILL)
    assert run.wait(PATIENCE_S) == 1, company.said(0)
    assert "every worker ended before the work did" in company.said(0)
    assert "killed by signal 9" in company.said(0)
    told = summary(company, 0)
    assert told["succeeded"] + told["pending"] == 40
    assert told["sent"] == company.rows("SELECT count(DISTINCT item_id) FROM attempts")[0][0] > 0


@pytest.mark.timeout(300)
def test_workers_that_cannot_begin_are_heard(company: Company) -> None:
    company.prompts(3)
    ended = audiobatch(*company.arguments("--workers", "2"), env={"AZURE_OPENAI_API_KEY": ""})
    assert ended.returncode in {2, 4}, ended.stderr
    cluster = audiobatch(*company.arguments("--workers", "2", "--dask", "tcp://127.0.0.1:9"), env=company.env)
    assert cluster.returncode == 2
    assert "no Dask scheduler answers there" in cluster.stderr


@pytest.mark.parametrize(
    ("settings", "flags", "words"),
    [
        ({}, {}, "needs books that several processes can share"),
        ({"ledger": "books.db"}, {}, "an SQLite file is one run's alone"),
        ({"ledger": SHARED}, {"count": None, "pool": "crew"}, "--work-pool says where"),
        ({"ledger": SHARED}, {"count": None, "dask": "tcp://d:1"}, "--dask says where"),
        ({"ledger": SHARED}, {"pool": "crew", "dask": "tcp://d:1"}, "leave one of them out"),
        ({"ledger": SHARED}, {"pool": "crew", "prefect": False}, "is Prefect's"),
        ({"ledger": SHARED}, {"watch": True}, "--watch and --workers"),
        ({"ledger": SHARED, "max_cost": 1}, {}, "--max-total-cost"),
        ({"ledger": SHARED, "provider": "local"}, {}, "audiobatch emulator"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason_and_the_way(
    settings: dict[str, Any], flags: dict[str, Any], words: str
) -> None:
    given = {"count": 2, "pool": None, "dask": None, "prefect": True, "watch": False, **flags}
    with pytest.raises(ConfigError, match=words):
        workers_for(JobSpec(inputs=("in",), **settings), given.pop("count"), **given)


def test_a_missing_extra_names_itself_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    spec = spec_of(inputs=("in",), ledger=SHARED)
    with pytest.raises(ConfigError, match=r"pip install 'audiobatch\[dask\]'"):
        workers_for(spec, 2, pool=None, dask="tcp://d:1", prefect=True, watch=False)


def test_orders_are_the_same_job_after_their_way_and_hold_no_default() -> None:
    spec = spec_of(inputs=("/in",), output="az://c/out", ledger=SHARED, max_total_cost="12.50", voice="echo")
    params = WorkerParams(job=spec, for_run="r1")
    there = json.loads(json.dumps(params.as_parameters()))
    assert WorkerParams.model_validate(there) == params
    assert "timeout_s" not in there["job"]
