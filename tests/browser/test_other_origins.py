"""A page of another origin, in a real browser, gets nowhere with the servers of this machine."""

import http.server
import json
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser

from audiobatch_emulator.process import EmulatorProcess
from tests import standing


@pytest.fixture
def page() -> Iterator[str]:
    """A site of its own: another origin on this machine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>page</title>")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        yield f"http://localhost:{site.server_port}"
        site.shutdown()
        thread.join()


#: What a page can try: read, preflighted and simple requests, a form without a content type, a frame.
ATTACK = """async ([api, emulator]) => {
    const tries = {
        read: () => fetch(`${api}/health`),
        jobs: () => fetch(`${api}/deployments/filter`,
            {method: "POST", headers: {"content-type": "application/json"}, body: "{}"}),
        simple: () => fetch(`${api}/flows/`, {method: "POST", body: '{"name": "by-a-page"}'}),
        opaque: () => fetch(`${api}/flows/`, {method: "POST", mode: "no-cors", body: '{"name": "by-a-page"}'}),
        bare: () => fetch(`${api}/flows/`,
            {method: "POST", mode: "no-cors", body: new Blob(['{"name": "by-a-page"}'])}),
        journal: () => fetch(`${emulator}/_emulator/journal`),
        reset: () => fetch(`${emulator}/_emulator/reset`, {method: "POST", mode: "no-cors"}),
    };
    const found = {};
    for (const [name, attempt] of Object.entries(tries)) {
        try { const reply = await attempt(); found[name] = `${reply.type} ${reply.status}`; }
        catch (error) { found[name] = "blocked"; }
    }
    return found;
}"""


def test_a_real_browser_gets_nowhere_from_another_origin_and_shows_the_server_s_own_pages(
    page: str, standing_server: standing.Server, emulator: EmulatorProcess, browser: Browser
) -> None:
    api = standing_server.address
    context = browser.new_context()
    try:
        opened = context.new_page()
        opened.goto(page)
        found = opened.evaluate(ATTACK, [api, emulator.base_url])
        # An opaque answer tells the page nothing; what it asked for was not done, see below.
        assert set(found.values()) <= {"blocked", "opaque 0"}
        assert found["read"] == found["jobs"] == found["journal"] == "blocked"
        asked = json.dumps({"flows": {"name": {"any_": ["by-a-page"]}}})
        made = context.request.post(
            f"{api}/flows/filter", data=asked, headers={"content-type": "application/json"}
        )
        assert made.json() == []
        refused = []
        context.on("response", lambda reply: refused.append(reply.url) if reply.status == 403 else None)
        for name in ("127.0.0.1", "localhost"):
            opened = context.new_page()
            with opened.expect_response(lambda reply: "/api/" in reply.url and reply.ok, timeout=60_000):
                opened.goto(f"http://{name}:{urlsplit(api).port}/deployments")
        assert refused == []
    finally:
        context.close()
