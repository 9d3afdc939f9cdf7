"""The official Node clients, in both lines, against the emulator."""

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, NoReturn

import platformdirs
import pytest

from audiobatch_emulator.process import EmulatorProcess
from tests.contract.emulator_clients import MODEL, tone_wav
from tests.running import ROOT

HERE = Path(__file__).resolve().parent / "node"
SDKS = ("openai6", "openai7")
pytestmark = pytest.mark.timeout(600)  # the first run installs packages


def without(what: str) -> NoReturn:
    """Skips; on CI, where Node is to be there, fails."""
    if os.environ.get("CI"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def node_folder() -> Path:
    """A folder, outside the repository, with the packages and the programs."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        without("Node and npm are not installed")
    manifest = (HERE / "package.json").read_bytes()
    name = "node-" + hashlib.sha256(manifest).hexdigest()[:12]
    folder = Path(platformdirs.user_cache_dir("audiobatch-tests")) / name
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "installed").exists():
        (folder / "package.json").write_bytes(manifest)
        flags = ("--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", "--engine-strict=false")
        ended = subprocess.run(
            [npm, "install", *flags], cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
        if ended.returncode != 0:
            without(f"npm install failed:\n{ended.stderr[-2000:]}")
        (folder / "installed").touch()
    for program in HERE.glob("*.mjs"):
        shutil.copy(program, folder)
    return folder


def run(folder: Path, server: EmulatorProcess, *command: str) -> Any:
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "BASE_URL": server.base_url,
        "HTTPS_BASE_URL": server.https_base_url,
        "API_KEY": server.api_key,
        "RECORDING": base64.b64encode(tone_wav()).decode(),
        "NODE_EXTRA_CA_CERTS": server.certificate,
        **server.identity_env,
    }
    if "SYSTEMROOT" in os.environ:  # Node on Windows does not start without it
        env["SYSTEMROOT"] = os.environ["SYSTEMROOT"]
    ended = subprocess.run(
        ["node", *command],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
        stdin=subprocess.DEVNULL,
    )
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.parametrize("sdk", SDKS)
def test_the_official_node_client_makes_every_call(
    node_folder: Path, server: EmulatorProcess, sdk: str
) -> None:
    seen = run(node_folder, server, "calls.mjs", sdk)
    ways = ("azure", "azureDeployment", "azureTls", "azureV1", "openai", "keyless", "virtualMachine")
    first = seen["azure"]
    assert "golden retriever" in first["transcript"]
    assert first["audioBytes"] > 48_000
    assert first["finishReason"] == "stop"
    assert [seen[way] for way in ways] == [first] * len(ways)
    assert "1.0 seconds" in seen["recording"]["transcript"]
    assert "1.0 seconds" in seen["recordingInText"]["content"]
    assert seen["recordingInText"]["audioBytes"] == 0
    assert "How long was it?" in seen["turns"]["content"]
    for way in ("stream", "streamOpenai"):
        assert seen[way]["transcript"] == first["transcript"]
        assert seen[way]["audioBytes"] == first["audioBytes"] - 44
        assert seen[way]["finishReason"] == "stop"
        assert seen[way]["usage"] == first["usage"]
    errors = seen["errors"]
    assert {name: (error["name"], error["status"], error["code"]) for name, error in errors.items()} == {
        "key": ("AuthenticationError", 401, "401"),
        "keyOpenai": ("AuthenticationError", 401, "invalid_api_key"),
        "token": ("AuthenticationError", 401, None),
        "deployment": ("NotFoundError", 404, "DeploymentNotFound"),
        "voice": ("BadRequestError", 400, "invalid_value"),
        "noAudio": ("BadRequestError", 400, "invalid_value"),
        "audioId": ("BadRequestError", 400, "audio_not_found"),
        "filter": ("BadRequestError", 400, "content_filter"),
    }
    assert errors["voice"]["param"] == "audio.voice"
    assert errors["audioId"]["param"] == "content.messages[1].audio.id"
    assert all(error["requestID"] for error in errors.values())
    assert all(record["delivered"] for record in server.journal())


@pytest.mark.parametrize("sdk", SDKS)
def test_its_retries_are_seen_as_attempts(node_folder: Path, server: EmulatorProcess, sdk: str) -> None:
    server.put_faults(
        {"when": {"attempt_below": 2}, "do": {"status": 503, "headers": {"retry-after-ms": "1"}}}
    )
    assert run(node_folder, server, "faults.mjs", sdk, "2") == {"error": None, "audio": True}
    assert [(r["attempt"], r["status"]) for r in server.journal()] == [(0, 503), (1, 503), (2, 200)]


@pytest.mark.parametrize("sdk", SDKS)
def test_it_meets_faults_and_quotas_as_the_service_s(
    node_folder: Path, server: EmulatorProcess, sdk: str
) -> None:
    server.put_faults({"do": {"reset": "in"}})
    broken = run(node_folder, server, "faults.mjs", sdk, "0")
    assert broken["error"] is not None
    server.put_faults({"do": {"corrupt": "json"}})
    assert run(node_folder, server, "faults.mjs", sdk, "0")["error"] == "SyntaxError"
    server.put_faults()
    server.put_quotas(**{MODEL: {"tpm": 1}})
    limited = run(node_folder, server, "faults.mjs", sdk, "0")
    assert limited == {"error": "RateLimitError", "status": 429}


@pytest.mark.parametrize("sdk", SDKS)
def test_the_readme_s_example_runs(node_folder: Path, server: EmulatorProcess, sdk: str) -> None:
    readme = (ROOT / "pipeline" / "audiobatch_emulator" / "README.md").read_text("utf-8")
    (example,) = re.findall(r"^```js\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    program = node_folder / f"readme-{sdk}.mjs"
    program.write_text(example.replace('from "openai"', f'from "{sdk}"'), encoding="utf-8")
    env = {"PATH": os.environ["PATH"], "EMULATOR_URL": server.base_url}
    ended = subprocess.run(
        ["node", program.name], cwd=node_folder, env=env, capture_output=True, text=True, timeout=60
    )
    assert "golden retriever" in ended.stdout, ended.stderr
    assert (node_folder / "reply.wav").read_bytes().startswith(b"RIFF")
    (node_folder / "reply.wav").unlink()
