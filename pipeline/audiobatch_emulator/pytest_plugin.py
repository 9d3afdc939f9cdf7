"""A pytest plugin: the fixture `audio_emulator` is the service, offline, for tests of any program that calls it.

    def test_my_program(audio_emulator):
        run_my_program(base_url=f"{audio_emulator.base_url}/v1", api_key=audio_emulator.api_key)
        (call,) = audio_emulator.settled_journal(1)
        assert call["status"] == 200

One server serves the whole session; each test finds it as at its start. Replies are tones, so that it needs none of
the speech engines. pytest loads this module wherever audiobatch is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from audiobatch_emulator.process import EmulatorProcess


@pytest.fixture(scope="session")
def audio_emulator_process() -> Iterator[EmulatorProcess]:
    """Run the emulator of this session, with all that earlier tests did."""
    from audiobatch_emulator.process import EmulatorProcess  # pytest loads this module for every project

    with EmulatorProcess("--speech", "tone") as emulator:
        yield emulator


@pytest.fixture
def audio_emulator(audio_emulator_process: EmulatorProcess) -> EmulatorProcess:
    """Return the emulator with an empty journal, no faults and no quotas.

    Its `base_url` is an origin: `/v1` behind it is OpenAI's API, `/openai/v1` and `/openai/deployments/…` Azure's.
    `api_key` is the key that it lets in, `journal()` what was asked and billed, `put_faults(…)` sets faults by
    rule, `put_quotas(…)` quotas by deployment.
    """
    audio_emulator_process.reset()
    return audio_emulator_process
