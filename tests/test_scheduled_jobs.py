"""Jobs on a schedule: a real server, `audiobatch serve`, cron, and the emulator."""

import asyncio
import contextlib
import itertools
import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.objects import FlowRun, State

from audiobatch.config.jobspec import JobSpec
from audiobatch_emulator.process import EmulatorProcess
from audiobatch_flows import server as prefect_server
from tests import flows_prefect, standing
from tests.narrowing import present
from tests.running import audiobatch, read_manifest, write_wav

pytestmark = [
    *(pytest.mark.filterwarnings(text) for text in flows_prefect.WARNINGS),
    pytest.mark.timeout(600),
    pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals"),
]
#: Seconds as a sixth field, which the command line does not take: tests have no minutes to wait.
OFTEN = "* * * * * */20"
NIGHTLY = "0 2 * * *"


@pytest.fixture(scope="module")
def service() -> Iterator[EmulatorProcess]:
    with EmulatorProcess("--speech", "tone") as emulator:
        yield emulator


@pytest.fixture(autouse=True)
def no_faults(service: EmulatorProcess) -> None:
    """No test meets the faults of the one before."""
    service.put_faults()


@pytest.fixture(scope="module")
def account(service: EmulatorProcess) -> dict[str, str]:
    return {
        "AZURE_OPENAI_ENDPOINT": service.base_url,
        "AZURE_OPENAI_API_KEY": service.api_key,
        "AZURE_OPENAI_DEPLOYMENT_NAME": "gpt-audio-1.5",
    }


@pytest.fixture(scope="module")
def server(standing_server: standing.Server) -> standing.Server:
    return standing_server


@pytest.fixture(scope="module")
def here(server: standing.Server, account: dict[str, str]) -> dict[str, str]:
    """The environment of a terminal that knows the server and has an account."""
    return {"PREFECT_API_URL": server.address, "PREFECT_HOME": str(flows_prefect.home()), **account}


class Serving:
    """`audiobatch serve`, started again after a test has ended it."""

    def __init__(self, env: dict[str, str]) -> None:
        self.env = env
        self.command: standing.Command | None = None

    def running(self) -> standing.Command:
        if self.command is None or self.command.process.poll() is not None:
            self.command = standing.Command("serve", env=self.env)
        return self.command


@pytest.fixture(scope="module")
def one_serving(here: dict[str, str]) -> Iterator[Serving]:
    serving = Serving(here)
    yield serving
    if serving.command is not None:
        serving.command.end()


@pytest.fixture
def serving(one_serving: Serving, service: EmulatorProcess) -> standing.Command:
    service.reset()
    return one_serving.running()


def recordings(folder: Path, *names: str) -> Path:
    for name in names:
        write_wav(folder / name, pitch_hz=100 + 7 * len(list(folder.glob("*"))) if folder.exists() else 100)
    return folder


@contextlib.asynccontextmanager
async def scheduled(
    server: standing.Server,
    service: EmulatorProcess,
    inbox: Path,
    out: Path,
    *,
    cron: str = NIGHTLY,
    **settings: Any,
) -> AsyncIterator[Any]:
    """A registered job while the block runs."""
    from audiobatch_flows import schedules

    spec = JobSpec(
        inputs=(str(inbox),),
        output=str(out),
        endpoint=service.base_url,
        deployment="gpt-audio-1.5",
        **settings,
    )
    with standing.connected(server.address):
        one, is_new = await schedules.register(spec, name=out.parent.name, cron=cron, timezone="UTC")
        assert is_new
        try:
            yield one
        finally:
            await schedules.remove(one)


async def due(job: Any) -> FlowRun:
    """A run of it that is due at once, as by a click in Prefect's pages."""
    from prefect.client.orchestration import get_client

    async with get_client() as client:
        return await client.create_flow_run_from_deployment(job.id)


async def one_fire(job: Any) -> None:
    """Let cron start one run, and then no more: on a busy machine they would start faster than they end."""
    from audiobatch_flows import schedules

    before = await begun(job)
    await schedules.resume(job)
    end = asyncio.get_running_loop().time() + standing.PATIENCE_S
    while not await begun(job) - before:
        assert asyncio.get_running_loop().time() < end, "cron started nothing"
        await asyncio.sleep(0.2)
    await schedules.pause(job)


async def begun(job: Any) -> set[UUID]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    async with get_client() as client:
        found = await client.read_flow_runs(
            deployment_filter=DeploymentFilter(id=DeploymentFilterId(any_=[job.id])), limit=200
        )
    return {run.id for run in found if not present(run.state).is_scheduled()}


async def cancel(run: FlowRun) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling

    async with get_client() as client:
        await client.set_flow_run_state(run.id, Cancelling())


def is_completed(run: FlowRun) -> bool:
    return present(run.state).name == "Completed"


async def until(condition: Callable[[], object]) -> None:
    assert await asyncio.to_thread(flows_prefect.until, condition, standing.PATIENCE_S)


async def test_it_fires_by_itself_and_sends_only_what_is_new(
    tmp_path: Path, serving: standing.Command, service: EmulatorProcess, server: standing.Server
) -> None:
    inbox, out = recordings(tmp_path / "inbox", "a.wav", "b.wav"), tmp_path / "out"
    async with scheduled(server, service, inbox, out, cron=OFTEN, prompt=("Describe this.",)) as job:
        await one_fire(job)
        first = await standing.until_run(out, is_completed)
        assert first.state.message.startswith("2 succeeded;")
        assert first.name == f"inbox → {out}"
        assert {"audiobatch", "azure"} <= set(first.tags)
        recordings(inbox, "c.wav")
        await one_fire(job)
        await standing.until_run(
            out, lambda run: str(run.state.message).startswith("1 succeeded, 2 were done")
        )
    assert [row["status"] for row in read_manifest(out / "manifest.csv")] == ["succeeded"] * 3
    assert len(service.journal()) == 3, "nothing was paid for twice"
    assert f"Serving {job.name}: " in serving.err
    assert f"inbox → {out}: 2 succeeded;" in serving.err


async def test_a_fire_while_the_last_run_is_at_work_is_skipped(
    tmp_path: Path, serving: standing.Command, service: EmulatorProcess, server: standing.Server
) -> None:
    from audiobatch_flows import schedules

    inbox, out = recordings(tmp_path / "inbox", "a.wav"), tmp_path / "out"
    service.put_faults({"when": {}, "do": {"latency_s": 600}})
    async with scheduled(server, service, inbox, out, drain_timeout_s=1) as job:
        first = await due(job)
        await until(service.journal)
        await due(job)
        skipped = await standing.until_run(out, lambda run: run.state.name == "Skipped")
        assert skipped.state.type.value == "COMPLETED"
        assert re.match("skipped: the last run is still at work: .* is in use by run ", skipped.state.message)
        assert "Wait until" not in skipped.state.message
        await schedules.pause(job)
        assert [run.id for run in await standing.flow_runs(out) if run.state.is_running()] == [first.id]
        await cancel(first)
    assert len(service.journal()) == 1
    serving.says("skipped: the last run is still at work")


async def refused(out: Path, run: FlowRun) -> str | None:
    """How a run ended that was not started."""
    from prefect.client.orchestration import get_client

    async def look() -> State[Any]:
        async with get_client() as client:
            return present((await client.read_flow_run(run.id)).state)

    end = asyncio.get_running_loop().time() + standing.PATIENCE_S
    while not (state := await look()).is_final():
        assert asyncio.get_running_loop().time() < end
        await asyncio.sleep(0.2)
    assert not out.exists()
    return state.message


async def test_a_run_that_would_send_the_credentials_elsewhere_is_not_started(
    tmp_path: Path, serving: standing.Command, service: EmulatorProcess, server: standing.Server
) -> None:
    from prefect.client.orchestration import get_client

    inbox, out = recordings(tmp_path / "inbox", "a.wav"), tmp_path / "out"
    with EmulatorProcess("--speech", "tone") as elsewhere:
        async with scheduled(server, service, inbox, out) as job:
            await until(lambda: f"Serving {job.name}: " in serving.err)
            for changed in (
                {"endpoint": elsewhere.base_url},
                {"provider": "openai", "endpoint": f"{elsewhere.base_url}/v1"},
                {"deployments": [{"deployment": "gpt-audio-1.5", "endpoint": elsewhere.base_url}]},
                {"ledger": "postgresql+psycopg://127.0.0.1:9/x"},
            ):
                async with get_client() as client:
                    run = await client.create_flow_run_from_deployment(
                        job.id, parameters={"job": {**job.job, **changed}}
                    )
                assert "names another" in present(await refused(out, run))
            async with get_client() as client:  # whoever may change the job itself gets no further
                await client._client.patch(
                    f"/deployments/{job.id}",
                    json={"parameters": {"job": {**job.job, "endpoint": elsewhere.base_url}}},
                )
            assert "names another endpoint" in present(await refused(out, await due(job)))
        assert elsewhere.journal() == []
    assert f"Refused a run of {job.name}: " in serving.err
    assert "Traceback" not in serving.err
    assert service.journal() == []


async def test_commands_that_somebody_has_put_before_a_run_are_not_run(
    tmp_path: Path, serving: standing.Command, service: EmulatorProcess, server: standing.Server
) -> None:
    from prefect.client.orchestration import get_client

    inbox, out = recordings(tmp_path / "inbox", "a.wav"), tmp_path / "out"
    mark = tmp_path / "mark"
    steps = [{"prefect.deployments.steps.run_shell_script": {"script": f"touch {mark}"}}]
    async with scheduled(server, service, inbox, out) as job:
        await until(lambda: f"Serving {job.name}: " in serving.err)
        async with get_client() as client:
            await client._client.patch(f"/deployments/{job.id}", json={"pull_steps": steps})
        assert "pull steps" in present(await refused(out, await due(job)))
        async with get_client() as client:
            await client._client.patch(
                f"/deployments/{job.id}", json={"pull_steps": [], "entrypoint": "antigravity.flow"}
            )
        await due(job)
        await standing.until_run(out, is_completed)
    assert not mark.exists()


async def test_what_finds_nothing_yet_is_no_failure(
    tmp_path: Path, serving: standing.Command, service: EmulatorProcess, server: standing.Server
) -> None:
    (tmp_path / "inbox").mkdir()
    async with scheduled(server, service, tmp_path / "inbox", tmp_path / "out") as job:
        await due(job)
        run = await standing.until_run(tmp_path / "out", lambda run: run.state.is_final())
    assert run.state.name == "Skipped"
    assert "skipped: nothing yet: " in run.state.message


async def test_paused_nothing_is_planned_and_resumed_it_is_again(
    tmp_path: Path, service: EmulatorProcess, server: standing.Server
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId

    from audiobatch_flows import schedules

    inbox, out = recordings(tmp_path / "inbox", "a.wav"), tmp_path / "out"
    async with scheduled(server, service, inbox, out) as job:
        of_it = DeploymentFilter(id=DeploymentFilterId(any_=[job.id]))
        async with get_client() as client:
            while not await client.read_flow_runs(deployment_filter=of_it):  # noqa: ASYNC110
                await asyncio.sleep(0.2)
            await schedules.pause(job)
            assert await client.read_flow_runs(deployment_filter=of_it) == [], "nothing is planned any more"
        paused = await schedules.named(job.name)
        assert (paused.paused, paused.next_at) == (True, None)
        # Changed while it is paused, it stays so.
        spec = JobSpec(**paused.job)
        changed, is_new = await schedules.register(spec, name=job.name, cron="0 3 * * *", timezone="UTC")
        assert (changed.paused, changed.cron, is_new) == (True, "0 3 * * *", False)
        await schedules.resume(job)
        while (await schedules.named(job.name)).next_at is None:  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def test_a_stopped_serve_drains_its_runs_and_pauses_nothing(
    tmp_path: Path,
    serving: standing.Command,
    one_serving: Serving,
    service: EmulatorProcess,
    server: standing.Server,
) -> None:
    from audiobatch_flows import schedules

    names = [f"{number:02}.wav" for number in range(12)]
    inbox, out = recordings(tmp_path / "inbox", *names), tmp_path / "out"
    service.put_faults({"when": {}, "do": {"latency_s": 4}})
    async with scheduled(server, service, inbox, out, max_concurrency=2) as job:
        run = await due(job)
        await until(lambda: len(service.journal()) >= 3)
        # Ctrl-C reaches all that the terminal started: `serve`, and the runs that it started.
        assert await asyncio.to_thread(serving.end_group, signal.SIGINT) == 0
        assert "Stopping: runs at work" in serving.err
        assert "The schedules stay as they are" in serving.err
        rows = read_manifest(out / "manifest.csv")
        assert {row["status"] for row in rows} == {"succeeded", "pending"}
        assert all(call["delivered"] for call in service.settled_journal(1)), "a call was aborted"
        stopped = await standing.until_run(out, lambda one: one.id == run.id)
        assert stopped.state.name == "Cancelled"
        assert not (await schedules.named(job.name)).paused
        service.put_faults()
        await schedules.register(JobSpec(**job.job), name=job.name, cron=OFTEN, timezone="UTC")
        one_serving.running()
        await one_fire(job)
        done = await standing.until_run(out, is_completed)
    assert "were done before" in done.state.message
    assert len(service.journal()) == 12


async def test_cancelled_under_serve_nothing_is_aborted(
    tmp_path: Path, serving: standing.Command, service: EmulatorProcess, server: standing.Server
) -> None:
    names = [f"{number:02}.wav" for number in range(40)]
    inbox, out = recordings(tmp_path / "inbox", *names), tmp_path / "out"
    service.put_faults({"when": {}, "do": {"latency_s": 3}})
    async with scheduled(server, service, inbox, out, max_concurrency=4) as job:
        run = await due(job)
        await until(lambda: len(service.journal()) >= 6)
        await cancel(run)
        ended = await standing.until_run(out, lambda one: one.id == run.id and one.state.is_final())
        assert ended.state.name == "Cancelled"
    calls = service.settled_journal(1)
    assert len(calls) < 40
    assert all(call["delivered"] for call in calls), "a call was aborted"
    await until(lambda: not in_use(out))
    rows = read_manifest(out / "manifest.csv")
    assert [row["status"] for row in rows].count("succeeded") == len(calls)
    assert {row["status"] for row in rows} == {"succeeded", "pending"}


async def test_what_is_due_beyond_the_limit_waits_for_a_run_to_end(
    tmp_path: Path,
    one_serving: Serving,
    here: dict[str, str],
    service: EmulatorProcess,
    server: standing.Server,
) -> None:
    if one_serving.command is not None:  # of two that serve, each would take its share
        await asyncio.to_thread(one_serving.command.end)
    service.reset()
    service.put_faults({"when": {}, "do": {"latency_s": 2}})
    narrow = standing.Command("serve", "--limit", "1", env=here)
    try:
        async with contextlib.AsyncExitStack() as jobs:
            runs = []
            for name in ("one", "two", "three"):
                inbox, out = recordings(tmp_path / name / "inbox", "a.wav"), tmp_path / name / "out"
                runs.append(await due(await jobs.enter_async_context(scheduled(server, service, inbox, out))))
            ended = [
                await standing.until_run(tmp_path / name / "out", is_completed)
                for name in ("one", "two", "three")
            ]
    finally:
        await asyncio.to_thread(narrow.end)
    assert {run.id for run in ended} == {run.id for run in runs}
    in_order = sorted(ended, key=lambda run: run.start_time)
    for earlier, later in itertools.pairwise(in_order):
        assert earlier.end_time <= later.start_time
    assert len(service.journal()) == 3


def in_use(folder: Path) -> Any:
    from audiobatch.storage.lock import FolderLock

    return FolderLock.holder(folder)


async def test_a_flow_run_left_running_by_a_kill_is_closed_by_the_next_run(
    tmp_path: Path, here: dict[str, str], service: EmulatorProcess, server: standing.Server
) -> None:
    service.reset()
    inbox, out = recordings(tmp_path / "inbox", *(f"{number}.wav" for number in range(6))), tmp_path / "out"
    service.put_faults({"when": {}, "do": {"latency_s": 600}})
    run = standing.Command("run", inbox, "--output", out, "--max-concurrency", "2", "--quiet", env=here)
    with standing.connected(server.address):
        await standing.until_run(out, lambda run: run.labels.get("audiobatch.folder"))
        assert await asyncio.to_thread(flows_prefect.until, lambda: len(service.journal()) >= 1, 60)
        assert run.end(signal.SIGKILL) == -signal.SIGKILL
        (dead,) = await standing.flow_runs(out)
        assert dead.state.name == "Running"
        service.put_faults()
        again = audiobatch("run", inbox, "--output", out, "--quiet", env=here)
        assert again.returncode == 0, again.stderr
        dead, alive = await standing.flow_runs(out)
        assert (dead.state.name, alive.state.name) == ("Crashed", "Completed")
        assert "killed, or its machine went down" in dead.state.message
        assert alive.labels["audiobatch.folder"] == ""
        assert await running_tasks(dead.id) == []


async def running_tasks(flow_run_id: UUID) -> list[str]:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

    async with get_client() as client:
        found = await client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
        )
    return [run.name for run in found if not present(run.state).is_final()]


async def test_two_live_runs_that_end_one_after_another_close_nobody(
    tmp_path: Path, here: dict[str, str], service: EmulatorProcess, server: standing.Server
) -> None:
    service.reset()
    inbox, out = recordings(tmp_path / "inbox", "a.wav"), tmp_path / "out"
    for _ in range(2):
        assert audiobatch("run", inbox, "--output", out, "--quiet", env=here).returncode == 0
        recordings(inbox, "b.wav")
    with standing.connected(server.address):
        assert [run.state.name for run in await standing.flow_runs(out)] == ["Completed", "Completed"]


def test_a_name_that_is_not_there_or_taken_is_said(tmp_path: Path, here: dict[str, str]) -> None:
    recordings(tmp_path / "inbox", "a.wav")
    missing = audiobatch("schedule", "pause", "nonsense", env=here)
    assert missing.returncode == 2
    assert "there is no schedule 'nonsense'" in missing.stderr
    once = (
        "schedule",
        tmp_path / "inbox",
        "--name",
        "taken",
        "--cron",
        "@daily",
        "--timezone",
        "Europe/Berlin",
    )
    assert audiobatch(*once, "--output", tmp_path / "one", env=here).returncode == 0
    changed = audiobatch(*once, "--output", tmp_path / "one", "--voice", "coral", env=here)
    assert changed.stdout.startswith("Changed: taken\n")
    assert "0 0 * * * (Europe/Berlin)" in changed.stdout
    other = audiobatch(*once, "--output", tmp_path / "two", env=here)
    assert other.returncode == 2
    assert "give this one another --name" in other.stderr
    listed = json.loads(audiobatch("schedule", "list", "--json", env=here).stdout)
    assert listed[0]["job"]["voice"] == "coral"
    assert "emulator-key" not in json.dumps(listed)
    assert audiobatch("schedule", "pause", "taken", env=here).stdout == "Paused: taken\n"
    assert audiobatch("schedule", "resume", "taken", env=here).stdout == "Resumed: taken\n"
    assert audiobatch("schedule", "remove", "taken", env=here).stdout == "Removed: taken\n"


@pytest.mark.parametrize(
    "entrypoint", ["flows.process_folder.process_folder", "/somewhere/flows/process_folder.py:process_folder"]
)
async def test_a_job_that_an_earlier_version_registered_goes_on(
    entrypoint: str, server: standing.Server, here: dict[str, str], service: EmulatorProcess, tmp_path: Path
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentUpdate

    inbox = recordings(tmp_path / "inbox", "a.wav")
    async with scheduled(server, service, inbox, tmp_path / "out") as job, get_client() as client:
        await client.update_deployment(job.id, DeploymentUpdate(entrypoint=entrypoint))
        await client.pause_deployment(job.id)
        before = await client.read_deployment(job.id)
        listed = await asyncio.to_thread(audiobatch, "schedule", "list", env=here)
        after = await client.read_deployment(job.id)
        assert "was registered by an earlier version" in listed.stderr
        assert after.entrypoint == "audiobatch_flows.flow.process_folder"
        assert (after.id, after.paused, after.parameters) == (before.id, True, before.parameters)
        assert [schedule.schedule for schedule in after.schedules] == [
            schedule.schedule for schedule in before.schedules
        ]
        again = await asyncio.to_thread(audiobatch, "schedule", "list", env=here)
        assert "earlier version" not in again.stderr


async def test_a_job_of_an_earlier_version_on_a_work_pool_is_named_with_the_command(
    server: standing.Server, here: dict[str, str], tmp_path: Path
) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate

    with standing.connected(server.address):
        async with get_client() as client:
            await client.create_work_pool(WorkPoolCreate(name="earlier", type="process"), overwrite=True)
            flow_id = await client.create_flow_from_name("process-folder")
            job_id = await client.create_deployment(
                flow_id,
                "process folder of mine",
                entrypoint="flows/process_folder.py:process_folder",
                work_pool_name="earlier",
                tags=["audiobatch"],
            )
            try:
                listed = await asyncio.to_thread(audiobatch, "schedule", "list", env=here)
                kept = await client.read_deployment(job_id)
            finally:
                await client.delete_deployment(job_id)
    assert "prefect deploy --name 'process folder of mine'" in listed.stderr
    assert kept.entrypoint == "flows/process_folder.py:process_folder"


def test_the_server_is_set_up_to_lose_nothing_and_its_pages_ask_its_own_port(server: standing.Server) -> None:
    import urllib.request

    assert prefect_server.trouble_with(server.address) == ""
    pages = server.address.removesuffix("/api")
    with urllib.request.urlopen(f"{pages}/ui-settings") as reply:
        assert json.load(reply)["api_url"] == "/api", "of the page's own origin, whichever name it has"
    services = prefect_server._settings(server.address, 10)["server"]["services"]
    assert services["triggers"]["enabled"]
    assert services["event_persister"]["enabled"]


async def test_a_server_that_could_lose_states_is_recognized(tmp_path: Path, here: dict[str, str]) -> None:
    name = "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER_BATCH_SIZE"
    weak = flows_prefect.started(**{name: "1", "PREFECT_HOME": str(tmp_path / "weak")})
    try:
        await weak.wait_healthy()
        # A server that has just started may take long to answer on a busy machine; the command then asks it again.
        assert name in prefect_server.trouble_with(weak.api_url, timeout_s=standing.PATIENCE_S)
        recordings(tmp_path / "inbox", "a.wav")
        ran = await asyncio.to_thread(
            audiobatch, "run", tmp_path / "inbox", "--output", tmp_path / "out", "--quiet",
            env={**here, "PREFECT_API_URL": weak.api_url},
        )  # fmt: skip
        assert ran.returncode == 0
        assert "records task states one by one" in ran.stderr
    finally:
        weak.stop()


def test_a_server_s_port_that_is_taken_is_a_message(server: standing.Server) -> None:
    port = server.address.rpartition(":")[2].partition("/")[0]
    ended = audiobatch("server", "--port", port)
    assert ended.returncode == 2
    assert "cannot be listened on" in ended.stderr
    assert "Traceback" not in ended.stderr
