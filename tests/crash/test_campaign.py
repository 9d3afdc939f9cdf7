"""The campaign, shortened. In full, by hand: `python -m tests.crash.campaign --kills 200`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(os.name == "nt", reason="forks")
def test_no_recorded_result_is_lost_or_paid_for_twice_however_often_the_run_is_killed(tmp_path):
    seed = os.environ.get("AUDIOBATCH_TEST_SEED", "5")
    ended = subprocess.run(
        [
            *(
                sys.executable,
                "-m",
                "tests.crash.campaign",
                "--kills",
                "14",
                "--items",
                "48",
                "--concurrency",
                "16",
            ),
            *("--seconds", "25", "--span", "1.2", "--seed", seed, "--keep", str(tmp_path / "campaign")),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr[-3000:]
    print(ended.stdout)
