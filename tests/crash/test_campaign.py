"""The campaign, shortened. In full, by hand: `python -m tests.crash.campaign --kills 200`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SEED = os.environ.get("AUDIOBATCH_TEST_SEED", "5")

pytestmark = pytest.mark.skipif(os.name == "nt", reason="forks")


def campaign(folder: Path, *words: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "tests.crash.campaign", "--seed", SEED, "--keep", str(folder), *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    print(ended.stdout)


def test_no_recorded_result_is_lost_or_paid_for_twice_however_often_the_run_is_killed(tmp_path: Path) -> None:
    words = ("--kills", "14", "--items", "48", "--concurrency", "16", "--seconds", "25", "--span", "1.2")
    campaign(tmp_path / "campaign", "--kinds", "kills", *words)


@pytest.mark.parametrize(
    ("kinds", "trials"), [("descriptors,disk,service", 2), ("database,stopped", 1), ("clock", 1)]
)
def test_nor_by_any_other_kind_of_fault(kinds: str, trials: int, tmp_path: Path) -> None:
    campaign(tmp_path / "campaign", "--kinds", kinds, "--trials", str(trials), "--seconds", "40")
