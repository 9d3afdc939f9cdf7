"""A company's proxy in the environment: servers on this machine are not behind it."""

import os
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from audiobatch_flows.cli.proxies import spare_this_machine
from tests import flows_prefect
from tests.running import audiobatch, read_manifest

#: Nothing listens there: whatever goes by it fails.
DEAD = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    # Put back at the end, also where they were not there before.
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_this_machine_is_spared_and_what_was_spared_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", DEAD)
    monkeypatch.setenv("NO_PROXY", ".example, localhost")
    spare_this_machine()
    spare_this_machine()
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == ".example,localhost,127.0.0.1,::1"
    assert urllib.request.proxy_bypass("127.0.0.1")
    assert not urllib.request.proxy_bypass("my.openai.azure.com")


@pytest.mark.parametrize("proxies", [{}, {"HTTPS_PROXY": DEAD, "no_proxy": "*"}])
def test_where_nothing_is_to_be_said_nothing_is(
    monkeypatch: pytest.MonkeyPatch, proxies: dict[str, Any]
) -> None:
    for name, value in proxies.items():
        monkeypatch.setenv(name, value)
    spare_this_machine()
    assert os.environ.get("no_proxy") == proxies.get("no_proxy")
    assert "NO_PROXY" not in os.environ


@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY"])
def test_a_run_under_prefect_on_the_emulator_needs_no_proxy(tmp_path: Path, name: str) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("Say hello.")
    out = tmp_path / "out"
    env = {name: DEAD, "PREFECT_HOME": str(flows_prefect.home())}
    done = audiobatch("run", tmp_path / "in", "--provider", "local", "--output", out, env=env)
    assert done.returncode == 0, done.stderr
    assert [row["status"] for row in read_manifest(out / "manifest.csv")] == ["succeeded"]
