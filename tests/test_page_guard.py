"""Web pages of other origins reach no server of ours: Prefect's, the embedded one, the emulator's own surface."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import http.client
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from audiobatch.config.jobspec import JobSpec
from audiobatch_emulator.page_guard import allowed_hosts, is_loopback, refusal
from audiobatch_emulator.process import EmulatorProcess
from audiobatch_flows.registered_job import destinations
from tests import flows_prefect, standing
from tests.narrowing import present
from tests.running import audiobatch

PAGE = "https://page.example"
OWN = "127.0.0.1:4200"


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        (OWN, []),
        (OWN, [f"http://{OWN}"]),
        ("LOCALHOST:4200", ["http://localhost:4200"]),
        ("localhost.:4200", []),
        ("[::1]:4200", ["http://[::1]:4200"]),
        ("jobs.example", ["https://jobs.example"]),
        ("10.1.2.3:4200", []),
    ],
)
def test_what_names_the_server_is_let_in(host: str, origin: list[str]) -> None:
    assert refusal(hosts=allowed_hosts("10.1.2.3", ["jobs.example"]), host=[host], origin=origin) == ""


@pytest.mark.parametrize(
    ("host", "origin", "site"),
    [
        (["page.example:4200"], [], ""),
        (["127.0.0.1.page.example"], [], ""),
        (["page.example@127.0.0.1"], [], ""),
        (["127.0.0.1/page.example"], [], ""),
        (["2130706433"], [], ""),
        ([""], [], ""),
        ([], [], ""),
        ([OWN, "page.example"], [], ""),
        ([OWN], [PAGE], ""),
        ([OWN], ["null"], ""),
        ([OWN], [""], ""),
        ([OWN], ["http://127.0.0.1:3000"], ""),
        ([OWN], ["http://localhost:4200"], ""),
        ([OWN], [f"http://{OWN}", PAGE], ""),
        ([OWN], [f"http://{OWN}.page.example"], ""),
        ([OWN], [], "cross-site"),
        ([OWN], [], "same-site"),
    ],
)
def test_what_does_not_or_comes_from_another_origin_is_refused(
    host: list[str], origin: list[str], site: str
) -> None:
    assert refusal(hosts=allowed_hosts("127.0.0.1"), host=host, origin=origin, fetch_site=site)


def test_a_link_that_is_followed_is_let_in() -> None:
    hosts = allowed_hosts("127.0.0.1")
    assert refusal(hosts=hosts, host=[OWN], origin=[], fetch_site="cross-site", is_link=True) == ""


def test_which_addresses_others_can_reach_is_known() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "jobs.example", "")))


def answer(
    address: str, method: str, path: str, body: str = "", **headers: str
) -> tuple[int, dict[str, str]]:
    """Status and headers, by hand: no client adds a header of its own."""
    where = urlsplit(address)
    connection = http.client.HTTPConnection(present(where.hostname), where.port, timeout=120)
    with contextlib.closing(connection):
        connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
        sent = {"Host": where.netloc, "Content-Length": str(len(body)), **headers}
        for name, value in sent.items():
            connection.putheader(name.replace("_", "-"), value)
        connection.endheaders(body.encode())
        reply = connection.getresponse()
        reply.read()
        return reply.status, {name.lower(): value for name, value in reply.getheaders()}


@pytest.fixture(scope="module")
def emulator_origin() -> Iterator[str]:
    with EmulatorProcess("--speech", "tone") as emulator:
        yield emulator.base_url


@pytest.fixture(params=["server", "embedded", "emulator"])
def target(
    request: pytest.FixtureRequest, standing_server: standing.Server, emulator_origin: str
) -> tuple[str, str, tuple[str, str]]:
    """An address, a path that answers a GET, and one that takes a POST or PUT."""
    if request.param == "emulator":
        return emulator_origin, "/_emulator/health", ("POST", "/_emulator/reset")
    embedded = request.param == "embedded"
    api = asyncio.run(flows_prefect.url()) if embedded else standing_server.address
    return api.removesuffix("/api"), "/api/health", ("POST", "/api/deployments/filter")


def test_programs_are_answered_and_pages_of_others_are_not(target: tuple[str, str, tuple[str, str]]) -> None:
    address, path, (method, change) = target
    own = urlsplit(address).netloc
    assert answer(address, "GET", path)[0] == 200
    assert answer(address, method, change, "{}", content_type="application/json")[0] == 200
    assert (
        answer(address, method, change, "{}", content_type="application/json", origin=f"http://{own}")[0]
        == 200
    )
    for foreign in (
        {"origin": PAGE},
        {"origin": "null"},
        {"Host": "page.example"},
        {"Host": f"page.example:{urlsplit(address).port}", "origin": "http://page.example"},
        {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"},
    ):
        for verb, where, body in (("GET", path, ""), (method, change, "{}"), ("DELETE", change, "")):
            status, headers = answer(address, verb, where, body, **foreign)
            assert status == 403, (verb, foreign)
            assert not [name for name in headers if name.startswith("access-control-")]
    asked = {"origin": PAGE, "access_control_request_method": "POST"}
    status, headers = answer(address, "OPTIONS", change, **asked)
    assert status == 403
    assert not [name for name in headers if name.startswith("access-control-")]


def test_no_answer_has_a_cors_header_not_even_to_its_own_page(standing_server: standing.Server) -> None:
    address = standing_server.address.removesuffix("/api")
    status, headers = answer(address, "GET", "/api/health", origin=address)
    assert status == 200
    assert not [name for name in headers if name.startswith("access-control-")]
    assert "frame-ancestors 'self'" in headers["content-security-policy"]


def test_a_socket_from_another_origin_is_refused(standing_server: standing.Server) -> None:
    address = urlsplit(standing_server.address)
    key = base64.b64encode(os.urandom(16)).decode()

    def status(origin: str) -> str:
        asked = (
            f"GET /api/events/in HTTP/1.1\r\nHost: {address.netloc}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{origin}\r\n"
        )
        with socket.create_connection((address.hostname, address.port), timeout=120) as line:
            line.sendall(asked.encode())
            return line.recv(4096).decode("latin-1").split()[1]

    assert status("") == "101"
    assert status(f"Origin: {PAGE}\r\n") == "403"


def test_an_address_that_others_reach_needs_a_login_or_a_word(tmp_path: Path) -> None:
    refused = audiobatch("server", "--host", "0.0.0.0", "--port", "0", env={"PREFECT_HOME": str(tmp_path)})
    assert refused.returncode == 2
    assert "PREFECT_SERVER_API_AUTH_STRING" in refused.stderr
    assert "--no-auth" in refused.stderr


@pytest.mark.timeout(300)
def test_a_login_works_for_the_server_and_all_that_talk_to_it(
    tmp_path: Path, emulator: EmulatorProcess
) -> None:
    home = str(tmp_path / "home")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("Say good morning.")
    login = {"PREFECT_SERVER_API_AUTH_STRING": "me:secret", "PREFECT_HOME": home}
    account = {
        "AZURE_OPENAI_ENDPOINT": emulator.base_url,
        "AZURE_OPENAI_API_KEY": emulator.api_key,
        "AZURE_OPENAI_DEPLOYMENT_NAME": "gpt-audio-1.5",
    }
    with standing.server(**login) as started:
        address = started.address
        status, _ = answer(address, "POST", "/api/deployments/filter", "{}", content_type="application/json")
        assert status == 401
        here = {**login, **account, "PREFECT_API_URL": address}
        words = ("schedule", "in", "--output", "out", "--cron", "0 2 * * *", "--name", "nightly")
        registered = audiobatch(*words, env=here, cwd=tmp_path)
        assert registered.returncode == 0, registered.stderr
        ran = audiobatch("run", "in", "--output", "ran", env=here, cwd=tmp_path)
        assert ran.returncode == 0, ran.stderr
        serving = standing.Command("serve", env=here)
        try:
            serving.says("Serving nightly")
        finally:
            assert serving.end() == 0
    embedded = audiobatch("run", "in", "--output", "embedded", env={**login, **account}, cwd=tmp_path)
    assert embedded.returncode == 0, embedded.stderr


def test_where_a_job_s_calls_go_is_known_whichever_way_it_is_said() -> None:
    job = JobSpec(inputs=("in",), provider="openai", endpoint="https://a.example/v1").as_parameter()
    same = JobSpec(inputs=("other",), provider="openai", endpoint="https://a.example/v1").as_parameter()
    assert destinations(job) == destinations(same)
    for changed in (
        {"endpoint": "https://page.example/v1"},
        {"provider": "azure"},
        {"auth": "key"},
        {"ledger": "postgresql+psycopg://page.example/x"},
        {"deployments": [{"deployment": "d", "endpoint": "https://page.example"}]},
    ):
        assert destinations({**job, **changed}) != destinations(job)
