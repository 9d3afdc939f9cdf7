"""The flow in this process: task runs, artifacts, states, and exit codes."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.artifacts import acreate_progress_artifact
from prefect.client.schemas.objects import FlowRun, TaskRun

from audiobatch.calls.stats import RunSummary
from audiobatch.config.jobspec import JobSpec
from tests import flows_engine, flows_prefect
from tests.narrowing import present

pytestmark = [pytest.mark.filterwarnings(text) for text in flows_prefect.WARNINGS]


def spec(folder: Path, **settings: Any) -> JobSpec:
    from audiobatch.config.jobspec import JobSpec

    given = {
        "inputs": (str(folder / "recordings"),),
        "output": str(folder / "out"),
        "timeout_s": 0.05,
        "limit": 3,
    }
    return JobSpec(**{**given, **settings})


async def last_run(**filters: Any) -> FlowRun:
    """The newest flow run in Prefect."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort

    async with get_client() as client:
        runs = await client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=1)
    return runs[0]


async def task_runs(flow_run_id: UUID, count: int) -> list[TaskRun]:
    """Its task runs, once `count` are recorded as ended: they arrive as events, a moment later."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    async with get_client() as client:
        for _ in range(100):
            found = await client.read_task_runs(
                flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
            )
            if len([run for run in found if run.state and run.state.is_final()]) >= count:
                break
            await asyncio.sleep(0.1)
    return found


async def artifacts(flow_run_id: UUID) -> dict[str | None, Any]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterFlowRunId

    wanted = ArtifactFilter(flow_run_id=ArtifactFilterFlowRunId(any_=[flow_run_id]))
    async with get_client() as client:
        found = await client.read_artifacts(artifact_filter=wanted)
    by_type = {artifact.type: artifact for artifact in found}
    assert len(by_type) == len(found), "one of each kind"
    return by_type


async def test_a_run_is_a_completed_flow_run_with_a_name_tags_and_a_task_an_item(tmp_path: Path) -> None:
    async with flows_prefect.connected():
        from audiobatch_flows.flow import process_folder

        summary = await process_folder(spec(tmp_path))
        assert isinstance(summary, RunSummary)
        assert (summary.succeeded, summary.exit_code) == (3, 0)
        run = await last_run()
        assert run.name == f"recordings → {tmp_path}/out"
        assert set(run.tags) == {"audiobatch", "azure", "gpt-audio-1.5"}
        assert present(run.state).type.value == "COMPLETED"
        assert present(present(run.state).message).startswith("3 succeeded; $0.0125")
        assert run.parameters["job"]["output"] == str(tmp_path / "out")
        tasks = await task_runs(run.id, 3)
        assert sorted(task.name for task in tasks) == ["item 1", "item 2", "item 3"]
        assert {present(task.state).type.value for task in tasks} == {"COMPLETED"}


async def test_items_share_tasks_where_the_plan_says_so(tmp_path: Path) -> None:
    async with flows_prefect.connected():
        from audiobatch_flows.flow import speak_prompts

        await speak_prompts(spec(tmp_path, system="shard=2"))
        tasks = await task_runs((await last_run()).id, 2)
        assert sorted(task.name for task in tasks) == ["item 3", "items 1-2"]


async def test_artifacts_show_progress_a_summary_and_the_first_items(tmp_path: Path) -> None:
    async with flows_prefect.connected():
        from audiobatch_flows.flow import process_folder

        await process_folder(spec(tmp_path, limit=250, timeout_s=0.001, system="shard=50"))
        found = await artifacts((await last_run()).id)
        assert found["progress"].data == 100.0
        assert "250/250 done" in found["progress"].description
        assert str(tmp_path / "out" / "manifest.csv") in found["markdown"].data
        assert "| tokens | 1,234 |" in found["markdown"].data
        assert len(json.loads(found["table"].data)) == 200
        assert "manifest.csv" in found["table"].description


async def test_a_run_that_ends_while_its_progress_is_still_being_created_has_one_and_it_is_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from audiobatch_flows import artifacts as product

    create = acreate_progress_artifact

    async def created_late(*args: Any, **kwargs: Any) -> Any:
        made = await create(*args, **kwargs)
        await asyncio.sleep(1.0)
        return made

    monkeypatch.setattr(product, "acreate_progress_artifact", created_late)
    async with flows_prefect.connected():
        from audiobatch_flows.flow import process_folder

        await process_folder(spec(tmp_path, timeout_s=0.001))
        found = await artifacts((await last_run()).id)
        assert found["progress"].data == 100.0
        assert "3/3 done" in found["progress"].description


async def test_failed_items_complete_the_run_with_a_message_and_a_tag(tmp_path: Path) -> None:
    async with flows_prefect.connected():
        from audiobatch_flows.flow import process_folder

        summary = await process_folder(spec(tmp_path, system="failed=1"))
        assert summary.exit_code == 3
        run = await last_run()
        assert present(run.state).type.value == "COMPLETED"
        assert present(present(run.state).message).startswith("2 succeeded, 1 failed")
        assert "partial" in run.tags


async def test_any_other_end_is_a_failed_run_and_an_error_that_carries_the_summary(tmp_path: Path) -> None:
    async with flows_prefect.connected():
        from audiobatch_flows import RunFailed, RunInterrupted, process_folder

        with pytest.raises(RunFailed) as ended:
            await process_folder(spec(tmp_path, system="exit=6"))
        assert ended.value.summary.exit_code == 6
        assert not isinstance(ended.value, RunInterrupted)
        assert present((await last_run()).state).type.value == "FAILED"


async def test_a_bug_in_one_shard_stops_the_others_orderly(tmp_path: Path) -> None:
    async with flows_prefect.connected():
        from audiobatch_flows import RunFailed, process_folder

        with pytest.raises(RunFailed, match="ZeroDivisionError") as ended:
            await process_folder(spec(tmp_path, limit=8, system="bug=5", max_concurrency=4, timeout_s=0.3))
        summary = ended.value.summary
        assert summary.exit_code == 1
        assert summary.sent == summary.succeeded == 4
        assert summary.pending == 4


async def test_settings_that_cannot_work_fail_the_run_with_their_message_and_no_pages_of_frames(
    tmp_path: Path,
) -> None:
    async with flows_prefect.connected():
        from audiobatch.errors import ConfigError
        from audiobatch_flows.flow import process_folder

        with pytest.raises(ConfigError, match="output is a file"):
            await process_folder(spec(tmp_path, system="refuse=1"))
        state = (await last_run()).state
        assert (present(state).type.value, present(state).message) == ("FAILED", "output is a file")


async def test_inside_another_flow_it_is_a_call_like_any_other(tmp_path: Path) -> None:
    async with flows_prefect.connected():
        from prefect import flow

        from audiobatch_flows.flow import process_folder

        @flow(name="nightly")
        async def nightly() -> list[int]:
            first = await process_folder(spec(tmp_path, output=str(tmp_path / "a")))
            second = await process_folder(spec(tmp_path, output=str(tmp_path / "b"), limit=2))
            return [first.succeeded, second.succeeded]

        assert await nightly() == [3, 2]


def test_outside_the_main_thread_it_runs_though_no_signal_can_reach_it(tmp_path: Path) -> None:
    got = []

    async def call() -> None:
        async with flows_prefect.connected():
            from audiobatch_flows.flow import process_folder

            got.append(await process_folder(spec(tmp_path)))

    thread = threading.Thread(target=lambda: asyncio.run(call()))
    thread.start()
    thread.join(30)
    assert got[0].succeeded == 3


async def test_cancelled_in_prefect_it_drains_and_is_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from audiobatch_flows import signals

    monkeypatch.setattr(signals, "POLL_S", 0.2)
    async with flows_prefect.connected():
        from prefect.client.orchestration import get_client
        from prefect.states import Cancelling

        from audiobatch_flows import RunInterrupted, process_folder

        async def cancel() -> None:
            while not (tmp_path / "out" / "calls.txt").exists():  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            async with get_client() as client:
                await client.set_flow_run_state((await last_run()).id, Cancelling())

        cancelling = asyncio.create_task(cancel())
        with pytest.raises(RunInterrupted) as ended:
            await process_folder(spec(tmp_path, limit=40, timeout_s=0.5, max_concurrency=2))
        await cancelling
        assert ended.value.summary.pending > 30
        assert ended.value.summary.unknown == 0
        assert present((await last_run()).state).type.value == "CANCELLED"


async def test_the_run_s_log_in_prefect_has_its_progress_and_its_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from audiobatch_flows import artifacts as page

    monkeypatch.setattr(page, "UPDATE_EVERY_S", 0.2)
    async with flows_prefect.connected():
        from prefect.client.orchestration import get_client

        from audiobatch_flows import launch
        from audiobatch_flows.flow import process_folder

        given = spec(tmp_path, limit=4, timeout_s=0.8, max_concurrency=1)
        async with flows_engine.SlowJob.open(given) as job:
            job.warnings.append("no price is known")
            await launch.as_flow(process_folder, flows_engine.engine_of(job, await job.prepare()))
        run = await last_run()
        for _ in range(150):  # lines are sent from a thread of their own
            async with get_client() as client:
                lines = [
                    log.message for log in await client.read_logs(limit=200) if log.flow_run_id == run.id
                ]
            if any("Finished" in line for line in lines):
                break
            await asyncio.sleep(0.2)
        assert "no price is known" in "\n".join(lines)
        assert any("/4 done" in line for line in lines), lines


async def test_an_engine_prepared_by_the_caller_is_used_and_always_gives_its_summary(tmp_path: Path) -> None:
    async with flows_prefect.connected():
        from audiobatch_flows import engine_context, launch
        from audiobatch_flows.flow import process_folder

        async with flows_engine.SlowJob.open(spec(tmp_path, system="exit=5"), run_id="mine") as job:
            engine = flows_engine.engine_of(job, await job.prepare())
            summary = await launch.as_flow(process_folder, engine)
        assert (summary.run_id, summary.exit_code) == ("mine", 5)
        assert engine.summary == summary
        assert engine_context.prepared.get() is None


def test_the_parameter_form_explains_each_setting() -> None:
    from audiobatch_flows.flow import process_folder

    schema = process_folder.parameters.model_dump()
    job = next(
        definition["properties"]
        for definition in schema["definitions"].values()
        if "inputs" in definition["properties"]
    )
    assert job["max_concurrency"]["anyOf"][0]["maximum"] == 1000
    assert all(setting.get("description") for setting in job.values())
    assert job["timeout_s"]["title"] == "Timeout (seconds)"
    assert job["max_concurrency"]["title"] == "Max concurrency"
    assert schema["required"] == ["job"]
