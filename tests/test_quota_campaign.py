"""The campaign on quotas, small: that it runs and that its figures mean what they say."""

from pathlib import Path

import pytest

from audiobatch_emulator.process import EmulatorProcess
from tests.benchmarks import quota


async def test_a_hidden_quota_is_kept_to_in_a_real_run(tmp_path: Path) -> None:
    rpm = 600
    with EmulatorProcess(*quota.FLAGS, "--quota", f"gpt-audio-1.5=rpm:{rpm}") as emulator:
        seen = await quota.run_for(emulator, tmp_path, seconds=8, items=200)
    assert seen.summary.failed == 0
    assert seen.refused() <= 3
    assert 0.5 <= seen.accepted(2, 7) / (rpm * 5 / 60) <= 1.1


async def test_it_can_be_made_deaf(tmp_path: Path) -> None:
    with EmulatorProcess(*quota.FLAGS, "--quota", "gpt-audio-1.5=rpm:600") as emulator:
        seen = await quota.run_for(emulator, tmp_path, seconds=6, items=200, deaf=True)
    assert seen.summary.failed == 0
    assert seen.refused() >= 1, "without headers only a refusal teaches the quota"


def test_episodes_are_groups_of_refusals() -> None:
    seen = quota.Seen(calls=[(0.0, 200, "d"), (1.0, 429, "d"), (1.5, 429, "d"), (9.0, 429, "d")])
    assert seen.episodes() == [1.0, 9.0]
    assert seen.refused() == 3
    assert seen.accepted(0, 10) == 1


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "emulator-key")
