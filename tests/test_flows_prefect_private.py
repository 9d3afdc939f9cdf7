"""Prefect's API address as we read it: from every place that Prefect itself reads."""

from pathlib import Path

import pytest

from audiobatch_flows import prefect_private

PROFILES = """
active = "ours"
[profiles.ours]
PREFECT_API_URL = "http://profile/api"
[profiles.other]
PREFECT_API_URL = "http://other/api"
"""


@pytest.fixture(autouse=True)
def empty_folder_and_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path)


def test_without_any_setting_there_is_none() -> None:
    assert prefect_private.api_url() is None


def test_each_place_is_read_and_the_earlier_one_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home" / "profiles.toml").write_text(PROFILES)
    assert prefect_private.api_url() == "http://profile/api"
    monkeypatch.setenv("PREFECT_PROFILE", "other")
    assert prefect_private.api_url() == "http://other/api"
    (tmp_path / "pyproject.toml").write_text('[tool.prefect.api]\nurl = "http://pyproject/api"\n')
    assert prefect_private.api_url() == "http://pyproject/api"
    (tmp_path / "prefect.toml").write_text('[api]\nurl = "http://prefect.toml/api"\n')
    assert prefect_private.api_url() == "http://prefect.toml/api"
    (tmp_path / ".env").write_text("PREFECT_API_URL=http://dotenv/api\n")
    assert prefect_private.api_url() == "http://dotenv/api"
    monkeypatch.setenv("PREFECT_API_URL", "http://environment/api")
    assert prefect_private.api_url() == "http://environment/api"


def test_profiles_may_live_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere.toml").write_text(PROFILES)
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(tmp_path / "elsewhere.toml"))
    assert prefect_private.api_url() == "http://profile/api"


@pytest.mark.parametrize("text", ["not toml", "active = 'gone'", "active = 'x'\n[profiles]\nx = 3"])
def test_profiles_that_make_no_sense_are_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "home" / "profiles.toml").write_text(text)
    assert prefect_private.api_url() is None


def test_prefect_itself_finds_the_same(tmp_path: Path) -> None:
    from prefect.settings import Settings

    (tmp_path / "home" / "profiles.toml").write_text(PROFILES)
    assert str(Settings().api.url) == prefect_private.api_url()
