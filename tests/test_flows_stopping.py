"""Stops of a real process, by real signals: what is in flight ends, what it cost is known, and Prefect is told."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from signal import Signals
from typing import Any

import pytest
from prefect.client.schemas.objects import FlowRun

from audiobatch.stop import Stop, StopReason
from audiobatch_flows import signals
from tests import flows_prefect
from tests.narrowing import present

pytestmark = [pytest.mark.filterwarnings(text) for text in flows_prefect.WARNINGS]

posix = pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")


class Run:
    """A child that runs 40 slow calls, 4 at once, and has begun them."""

    def __init__(self, folder: Path, mode: str, *, address: str | None = None, call_s: float = 1.5) -> None:
        self.out = folder / "out"
        settings = {"inputs": ["/in/recordings"], "output": str(self.out), "limit": 40, "max_concurrency": 4}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.flows_child", mode, json.dumps({**settings, "timeout_s": call_s})],
            env=flows_prefect.child_environment(address),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        begun = flows_prefect.until(
            lambda: len(self.calls("start")) >= 4 or self.process.poll() is not None, 90.0
        )
        assert begun, "the calls did not begin"
        assert self.process.poll() is None, self.process.communicate()

    def calls(self, what: str) -> list[str]:
        try:
            return [
                line for line in (self.out / "calls.txt").read_text().splitlines() if line.startswith(what)
            ]
        except FileNotFoundError:
            return []

    def end(self) -> tuple[int, str, str]:
        """Exit code, the lines of standard output and standard error."""
        out, err = self.process.communicate(timeout=120)
        self.summary = json.loads(out.splitlines()[-1]) if out else None
        return self.process.returncode, out, err

    def drained(self) -> bool:
        return self.calls("lost") == [] and len(self.calls("start")) == len(self.calls("end")) <= 8


async def flow_run(output: Path) -> FlowRun:
    """The flow run in Prefect that wrote there."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.sorting import FlowRunSort

    async with get_client() as client:
        for run in await client.read_flow_runs(sort=FlowRunSort.START_TIME_DESC, limit=20):
            if run.parameters.get("job", {}).get("output") == str(output):
                return run
    raise AssertionError("no such flow run")


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_without_prefect_the_first_signal_drains(tmp_path: Path, number: Signals, code: int) -> None:
    run = Run(tmp_path, "plain")
    run.process.send_signal(number)
    returned, _, err = run.end()
    assert returned == code
    assert run.drained()
    assert "4 calls in flight may take up to 20 s" in err
    assert "The same command goes on later" in err
    assert str(run.out) in err


@posix
def test_the_second_signal_gives_up_what_is_in_flight(tmp_path: Path) -> None:
    run = Run(tmp_path, "plain", call_s=30)
    run.process.send_signal(signal.SIGINT)
    assert "Stopping (Ctrl-C)" in present(run.process.stderr).readline()
    run.process.send_signal(signal.SIGINT)
    returned, _, _ = run.end()
    assert returned == 130
    assert present(run.summary)["unknown"] == len(run.calls("lost")) == 4


@posix
def test_the_third_signal_ends_the_process_where_it_stands(tmp_path: Path) -> None:
    program = (
        "import asyncio, signal, time\n"
        "from audiobatch_flows import signals\n"
        "from audiobatch.stop import Stop\n"
        "async def main():\n"
        "    with signals.on_signals(Stop(), in_flight=str):\n"
        "        print('ready', flush=True)\n"
        "        for _ in range(3000):\n"
        "            time.sleep(0.01)  # a loop that is stuck\n"
        "asyncio.run(main())\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program],
        env=flows_prefect.child_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with child:
        assert present(child.stdout).readline() == "ready\n"
        for _ in range(3):
            child.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(0.3)
        assert child.wait(5) == 143


@posix
@pytest.mark.parametrize(
    ("mode", "number", "code"), [("command", signal.SIGINT, 130), ("flow", signal.SIGTERM, 143)]
)
async def test_under_prefect_a_signal_drains_and_the_flow_run_is_cancelled(
    tmp_path: Path, mode: str, number: Signals, code: int
) -> None:
    async with flows_prefect.connected():
        run = Run(tmp_path, mode, address=await flows_prefect.url())
        run.process.send_signal(number)
        returned, _, err = await asyncio.to_thread(run.end)
        assert (returned, present(run.summary)["exit_code"]) == (code, code)
        assert run.drained()
        assert err.count("Stopping (") == 1
        assert "Traceback" not in err
        state = (await flow_run(run.out)).state
        assert present(state).type.value == "CANCELLED"
        assert "pending" in present(present(state).message)


@posix
async def test_two_signals_under_prefect_leave_a_cancelled_run_too(tmp_path: Path) -> None:
    async with flows_prefect.connected():
        run = Run(tmp_path, "command", address=await flows_prefect.url(), call_s=30)
        run.process.send_signal(signal.SIGTERM)
        assert flows_prefect.until(lambda: run.calls("start"))
        await asyncio.sleep(0.5)
        run.process.send_signal(signal.SIGTERM)
        returned, _, _ = await asyncio.to_thread(run.end)
        assert returned == 143
        assert present(run.summary)["unknown"] == 4
        assert present((await flow_run(run.out)).state).type.value == "CANCELLED"


@posix
async def test_ctrl_c_reaches_the_whole_process_group_but_not_the_server_that_records_the_end(
    tmp_path: Path,
) -> None:
    async with flows_prefect.connected():
        run = Run(tmp_path, "embedded")
        server = int(present(run.process.stdout).readline())
        os.killpg(run.process.pid, signal.SIGINT)
        returned, _, err = await asyncio.to_thread(run.end)
        assert returned == 130
        assert run.drained()
        assert "Traceback" not in err
        assert present((await flow_run(run.out)).state).type.value == "CANCELLED"
        assert flows_prefect.until(lambda: not flows_prefect.alive(server), 10.0)


@posix
async def test_cancelled_in_prefect_by_hand_the_process_drains_and_ends(tmp_path: Path) -> None:
    from prefect.client.orchestration import get_client
    from prefect.states import Cancelling

    async with flows_prefect.connected():
        run = Run(tmp_path, "flow", address=await flows_prefect.url(), call_s=1.5)
        async with get_client() as client:
            await client.set_flow_run_state((await flow_run(run.out)).id, Cancelling())
        returned, _, err = await asyncio.to_thread(run.end)
        assert returned == 130
        assert "cancelled in Prefect" in err
        assert run.calls("lost") == []
        assert present(run.summary)["pending"] > 0
        assert present((await flow_run(run.out)).state).type.value == "CANCELLED"


@posix
def test_a_server_that_is_gone_in_mid_run_costs_no_result(tmp_path: Path) -> None:
    flows_prefect.pair()
    run = Run(tmp_path, "embedded", call_s=0.3)
    os.kill(int(present(run.process.stdout).readline()), signal.SIGKILL)
    returned, _, err = run.end()
    assert (returned, present(run.summary)["succeeded"]) == (0, 40)
    assert "the results are safe" in err
    assert "Traceback" not in err


@posix
async def test_handlers_are_as_before_once_the_run_is_over() -> None:
    before = [signal.getsignal(number) for number in signals.REASONS]
    stop = Stop()
    with signals.on_signals(stop, in_flight=str):
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.wait_for(stop.soft.wait(), 5)
    assert stop.reason is StopReason.SIGTERM
    assert [signal.getsignal(number) for number in signals.REASONS] == before


@posix
async def test_signals_count_once_for_handlers_inside_one_another() -> None:
    stop = Stop()
    with signals.on_signals(stop, in_flight=str), signals.on_signals(stop, in_flight=str):
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(stop.soft.wait(), 5)
        assert not stop.hard.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.wait_for(stop.hard.wait(), 5)


@posix
async def test_a_signal_while_another_stop_drains_does_not_abort() -> None:
    stop = Stop()
    stop.ask(StopReason.MAX_COST)
    with signals.on_signals(stop, in_flight=str):
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(0.05)
    assert stop.hurried.is_set()
    assert not stop.hard.is_set()
    assert stop.reason is StopReason.MAX_COST


async def test_a_state_that_cannot_be_read_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "POLL_S", 0.01)
    answers = iter([OSError("no route"), False, True])

    async def cancelled() -> Any:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    stop = Stop()
    async with signals.on_cancellation(stop, cancelled):
        await asyncio.wait_for(stop.soft.wait(), 5)
    assert stop.reason is StopReason.CANCELLED
    assert next(answers, None) is None


@posix
async def test_two_signals_of_different_kinds_are_one_wish_also_while_another_stop_drains(
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop = Stop()
    stop.ask(StopReason.MAX_COST)
    with signals.on_signals(stop, in_flight=str):
        for number in signals.REASONS:
            os.kill(os.getpid(), number)
            await asyncio.sleep(0.05)
    assert not stop.hard.is_set()
    assert capsys.readouterr().err.count("Stopping") == 1


async def test_a_cancellation_is_heard_while_another_stop_drains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "POLL_S", 0.01)

    async def cancelled() -> bool:
        return True

    stop = Stop()
    stop.ask(StopReason.MAX_COST)
    async with signals.on_cancellation(stop, cancelled):
        await asyncio.wait_for(stop.hurried.wait(), 5)
    assert stop.reason is StopReason.MAX_COST


def test_a_process_that_hangs_at_its_end_is_ended() -> None:
    program = (
        "import time; from audiobatch_flows.signals import *; end_process_after(143, 0.1); time.sleep(60)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], env=flows_prefect.child_environment(), timeout=120
    )
    assert ended.returncode == 143
