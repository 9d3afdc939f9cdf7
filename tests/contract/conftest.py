"""Fixtures of the contract tests: one emulator for all of them, as new before each test."""

from collections.abc import Iterator

import pytest

from audiobatch_emulator.process import EmulatorProcess


@pytest.fixture(scope="session")
def _running() -> Iterator[EmulatorProcess]:
    with EmulatorProcess("--speech", "tone", "--deployment", "my-audio=gpt-audio-1.5") as emulator:
        yield emulator


@pytest.fixture
def server(_running: EmulatorProcess) -> EmulatorProcess:
    """The running emulator, with an empty journal, no faults and no quotas."""
    _running.reset()
    return _running
