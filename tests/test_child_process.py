"""Programs that we start: they end with us, say why they fail, and import nothing of the user's folder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from audiobatch.child_process import ChildProcess, StartFailed, without_credentials
from audiobatch_emulator.process import EmulatorProcess
from tests.flows_prefect import alive, until

PROGRAMS = ("audiobatch.audio.probe_worker", "audiobatch_flows.server_process", "audiobatch_emulator")
#: A child that is at work, and does not look at its input.
BUSY = """
import os, time
from functools import partial
from audiobatch.child_process import announce, on_parent_exit
on_parent_exit(partial(os._exit, 0), watch_input=WATCH)
announce(f"ready {os.getpid()}")
time.sleep(600)
"""
EMULATOR_OF_TESTS = """
from audiobatch_emulator.process import EmulatorProcess
emulator = EmulatorProcess("--speech", "tone").start()
pid = emulator.pid
"""


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Return a function that writes a module which a child finds."""
    folder = tmp_path / "modules"
    folder.mkdir()
    monkeypatch.setenv("PYTHONPATH", str(folder))

    def write(text: str) -> str:
        (folder / "audiobatch_test_child.py").write_text(text, encoding="utf-8")
        return "audiobatch_test_child"

    return write


@pytest.fixture
def clashing_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in whose modules have the names of others."""
    folder = tmp_path / "project"
    folder.mkdir()
    for name in ("queue", "json", "audio", "limits", "pipeline", "uvicorn", "numpy", "signal"):
        (folder / f"{name}.py").write_text("raise SystemExit('not this one')", encoding="utf-8")
    monkeypatch.chdir(folder)
    return folder


def parent_of(start: str) -> subprocess.Popen[str]:
    """Start a program that starts a child, prints the child's process id, and waits."""
    text = f"import os, time\n{start}\nprint(pid, flush=True)\ntime.sleep(600)\n"
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(
    "start",
    [
        *(
            "from audiobatch.child_process import ChildProcess\n"
            f"child = ChildProcess({module!r}, {arguments} env=os.environ)\n"
            "child.wait_ready(60)\n"
            "pid = child.pid"
            for module, arguments in (
                (PROGRAMS[0], ""),
                (PROGRAMS[1], ""),
                (PROGRAMS[2], "'--speech', 'tone', '--exit-on-stdin-close',"),
            )
        ),
        EMULATOR_OF_TESTS,
    ],
    ids=["probe", "prefect", "emulator", "emulator of tests"],
)
def test_a_child_ends_when_its_parent_is_killed(
    start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    with parent_of(start) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.send_signal(signal.SIGKILL)
    assert until(lambda: not alive(pid), 15.0)


@pytest.mark.parametrize("watch_input", [True, False])
def test_a_child_at_work_ends_when_its_parent_is_killed(
    program: Callable[[str], str], watch_input: bool
) -> None:
    module = program(BUSY.replace("WATCH", str(watch_input)))
    start = (
        "from audiobatch.child_process import ChildProcess\n"
        f"child = ChildProcess({module!r}, env=os.environ)\n"
        "pid = int(child.wait_ready(60).split()[1])"
    )
    with parent_of(start) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    assert until(lambda: not alive(pid), 10.0)


def test_a_child_ends_when_its_input_is_closed_and_what_it_prints_later_is_no_answer(
    program: Callable[[str], str],
) -> None:
    child = ChildProcess(program(BUSY.replace("WATCH", "True")), env=os.environ)
    assert child.wait_ready(60) == f"ready {child.pid}"
    assert child.read_line(60) == b""
    assert child.exit_code is None
    assert child.stop(30) == 0
    assert child.stop(30) == 0


def test_why_a_child_did_not_start_is_said_with_its_last_lines(program: Callable[[str], str]) -> None:
    child = ChildProcess(program("import sys\nprint('so far', file=sys.stderr)\n1 / 0\n"), env=os.environ)
    with pytest.raises(StartFailed, match="ended with code 1 before it was ready") as failed:
        child.wait_ready(60)
    lines = failed.value.stderr.splitlines()
    assert (lines[0], lines[-1]) == ("so far", "ZeroDivisionError: division by zero")


def test_a_child_that_does_not_get_ready_is_ended(program: Callable[[str], str]) -> None:
    child = ChildProcess(program("import time\ntime.sleep(600)\n"), env=os.environ)
    with pytest.raises(StartFailed, match=r"was not ready within 0\.2 s"):
        child.wait_ready(0.2)
    assert child.exit_code == -signal.SIGKILL
    assert not alive(child.pid)


def test_a_child_that_falls_silent_is_ended(program: Callable[[str], str]) -> None:
    child = ChildProcess(
        program("import time\nprint('ready', flush=True)\ntime.sleep(600)\n"), env=os.environ
    )
    child.wait_ready(60)
    child.write_line(b"a question")
    with pytest.raises(TimeoutError, match=r"said nothing for 0\.2 s"):
        child.read_line(0.2)
    assert child.stop(None) == -signal.SIGKILL


def test_a_child_that_does_not_call_the_service_gets_no_key(
    program: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("AZURE_OPENAI_API_KEY", "OPENAI_API_KEY", "AUDIOBATCH_X"):
        monkeypatch.setenv(name, "canary")
    child = ChildProcess(program("import os\nprint(dict(os.environ))"), env=without_credentials())
    said = child.wait_ready(60)
    child.stop(30)
    assert "PATH" in said
    assert "canary" not in said


@pytest.mark.usefixtures("clashing_folder")
@pytest.mark.parametrize("module", PROGRAMS)
def test_modules_of_the_folder_one_works_in_are_not_imported(module: str, tmp_path: Path) -> None:
    child = ChildProcess(module, env={**os.environ, "PREFECT_HOME": str(tmp_path)})
    assert child.wait_ready(60)
    child.kill()
    child.stop(None)


@pytest.mark.usefixtures("clashing_folder")
def test_an_emulator_of_tests_imports_nothing_of_the_folder_either() -> None:
    with EmulatorProcess("--speech", "tone") as emulator:
        assert emulator.health()["status"] == "ok"
