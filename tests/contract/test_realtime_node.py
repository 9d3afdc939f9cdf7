"""The official Node client's sessions, in both lines, against the emulator."""

from pathlib import Path

import pytest

from audiobatch_emulator.process import EmulatorProcess
from tests.contract.test_emulator_node import SDKS, node_folder, run

__all__ = ["node_folder"]
pytestmark = pytest.mark.timeout(600)  # the first run installs packages


@pytest.mark.parametrize("sdk", SDKS)
def test_the_official_node_client_talks_by_every_way(
    node_folder: Path, server: EmulatorProcess, sdk: str
) -> None:
    seen = run(node_folder, server, "realtime.mjs", sdk)
    ways = ("azureV1", "azureV1Token", "openai", "azureClient", "azureClientKeyless")
    for way in ways:
        talk = seen[way]
        assert talk["kinds"][:4] == [
            "session.created",
            "session.updated",
            "conversation.item.added",
            "conversation.item.done",
        ], way
        assert "response.output_audio.delta" in talk["kinds"]
        assert talk["kinds"][-1] == "response.done"
        assert talk["status"] == "completed"
        assert talk["done"] == talk["transcript"]
        assert "Please assist the user." in talk["done"]
        assert talk["audioBytes"] > 48_000
        assert len(set(talk["sessions"])) == 1
    azure = "/openai/realtime?api-version=" if sdk == "openai6" else "/openai/v1/realtime?model="
    assert seen["azureClient"]["url"].startswith(azure)
    assert "401" in seen["wrongKey"]["error"]
    assert "404" in seen["noDeployment"]["error"]
    assert [r["status"] for r in server.journal()] == [200] * len(ways) + [401, 404]
