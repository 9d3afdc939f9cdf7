"""What the doctor finds: each line, where it is well and where it is not."""

import asyncio
import http.server
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import av
import pytest

from audiobatch.audio.encode import REPLY_FORMATS
from audiobatch.audio.probe import EXTENSIONS
from audiobatch.config.jobspec import JobSpec
from audiobatch.maintenance import doctor
from audiobatch_emulator.process import EmulatorProcess


def examined(call: bool = False, **settings: Any) -> dict[str, doctor.Finding]:
    async def all_of_it() -> list[doctor.Finding]:
        return [finding async for finding in doctor.examine(JobSpec(**settings), call=call)]

    return {finding.what: finding for finding in asyncio.run(all_of_it())}


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_OPENAI_API_KEY", "canary-of-a-key")


@contextmanager
def clock_of(moment: datetime) -> Iterator[str]:
    """A server whose clock says something else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response_only(200)
            self.send_header("Date", format_datetime(moment, usegmt=True))
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(("off_s", "words"), [(0, "clocks agree"), (3600, "behind"), (-3600, "ahead")])
def test_a_clock_that_is_wrong_is_told(off_s: int, words: str, tmp_path: Path) -> None:
    with clock_of(datetime.now(UTC) + timedelta(seconds=off_s)) as address:
        found = examined(endpoint=address, deployment="d", output=str(tmp_path))
    finding = found["d: endpoint"]
    assert words in finding.message
    assert finding.ok == (off_s == 0)
    assert finding.ok or "set the clock" in finding.advice


def test_an_endpoint_that_is_not_there_is_told(tmp_path: Path) -> None:
    found = examined(endpoint="http://127.0.0.1:9", deployment="d", output=str(tmp_path))
    assert not found["d: endpoint"].ok
    assert "check the address" in found["d: endpoint"].advice


def test_an_output_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    found = examined(provider="local", output=str(tmp_path / "file" / "out"))
    assert not found["output"].ok
    assert "--output" in found["output"].advice
    assert found["gpt-audio-1.5"].ok, "the local emulator needs no account"


def test_a_folder_that_is_to_be_made_can_be_written(tmp_path: Path) -> None:
    assert examined(provider="local", output=str(tmp_path / "new" / "out"))["output"].ok
    assert not (tmp_path / "new").exists(), "the doctor makes nothing"


def test_a_missing_credential_ends_the_examination_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AZURE_OPENAI_API_KEY")
    found = examined(endpoint="http://127.0.0.1:9", deployment="d", auth="key", output=str(tmp_path))
    assert not found["service"].ok
    assert "config show" in found["service"].advice
    assert "d: endpoint" not in found


def test_a_token_s_tenant_and_life_are_told_and_the_token_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AZURE_OPENAI_API_KEY")
    with EmulatorProcess("--speech", "tone", "--token-life", "600") as emulator:
        for name, value in emulator.identity_env.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AZURE_TOKEN_CREDENTIALS", "ManagedIdentityCredential")
        how = {"endpoint": emulator.base_url, "deployment": "gpt-audio-1.5", "output": str(tmp_path)}
        found = examined(call=True, auth="entra", **how)
    credential = found["gpt-audio-1.5: credential"]
    assert credential.ok
    assert "tenant" in credential.message
    assert "valid for 10 min" in credential.message
    assert "ey" not in credential.message.split("tenant")[0]
    assert found["gpt-audio-1.5: call"].ok


def test_a_price_that_is_not_known_and_a_model_that_is_retired_are_told(tmp_path: Path) -> None:
    how: dict[str, Any] = {"endpoint": "http://127.0.0.1:9", "deployment": "d", "output": str(tmp_path)}
    unknown = examined(model="mystery", **how)["d: price"]
    assert not unknown.ok
    assert "--prices" in unknown.advice
    table = tmp_path / "prices.toml"
    price = 'text_in = "1"\ntext_out = "1"\naudio_in = "1"\naudio_out = "1"\n'
    table.write_text(
        f"[models.old]\n{price}retires = 2020-01-01\n[models.new]\n{price}retires = 2999-01-01\n"
    )
    old = examined(model="old", prices=str(table), **how)["d: price"]
    assert (old.ok, "2020-01-01" in old.message) == (False, True)
    new = examined(model="new", prices=str(table), **how)["d: price"]
    assert (new.ok, "2999-01-01" in new.message) == (True, True)


def test_the_prefect_server_that_a_run_would_use_is_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from audiobatch_flows.cli.commands.doctor import prefect_server

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PREFECT_PROFILE", raising=False)
    assert "a server of its own" in prefect_server().message
    with clock_of(datetime.now(UTC)) as address:  # answers 501 to what it does not know
        (tmp_path / "prefect.toml").write_text(f'[api]\nurl = "{address}/api"\n')
        assert not prefect_server().ok
    with EmulatorProcess("--speech", "tone") as emulator:  # answers 404: it is there
        (tmp_path / "prefect.toml").write_text(f'[api]\nurl = "{emulator.base_url}/api"\n')
        found = prefect_server()
    assert (found.ok, emulator.base_url in found.message) == (True, True)
    found = prefect_server()
    assert (found.ok, "--no-prefect" in found.advice) == (False, True)


def test_every_format_is_decoded_and_encoded_and_named(tmp_path: Path) -> None:
    finding = examined(provider="local", output=str(tmp_path))["codecs"]
    assert finding.ok
    for name in (*EXTENSIONS, *REPLY_FORMATS):
        assert name in finding.message


def test_a_decoder_that_is_there_and_does_not_work_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = av.open

    def without_mp3(file: Any, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("format") == "mp3":
            raise TypeError("open() got an unexpected keyword argument 'metadata_errors'")
        return whole(file, *args, **kwargs)

    monkeypatch.setattr(av, "open", without_mp3)
    finding = examined(provider="local", output=str(tmp_path))["codecs"]
    assert not finding.ok
    assert "reading mp3: TypeError: open()" in finding.message
    assert "writing mp3" in finding.message
    assert "m4a" not in finding.message
    assert finding.advice


def test_codecs_that_are_missing_are_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    finding = examined(provider="local", output=str(tmp_path))["codecs"]
    assert not finding.ok
    assert "import of av halted" in finding.message
