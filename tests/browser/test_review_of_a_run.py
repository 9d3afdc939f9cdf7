"""The page of a real run: recordings play from where they lie, and what is marked on it is made again."""

from pathlib import Path

from audiobatch_emulator.process import EmulatorProcess
from tests.browser.conftest import OpenPage
from tests.running import audiobatch, last_json, read_manifest, write_wav


def test_what_is_marked_on_the_page_of_a_run_is_made_again(
    visit: OpenPage, emulator: EmulatorProcess, tmp_path: Path
) -> None:
    for name in ("a b.wav", "tür/c#1.wav"):
        write_wav(tmp_path / "my calls" / name, seconds=2)
    out = tmp_path / "results" / "out"
    env = {"AZURE_OPENAI_ENDPOINT": emulator.base_url, "AZURE_OPENAI_API_KEY": emulator.api_key}
    arguments = ("--output", out, "--deployment", "gpt-audio-1.5", "--no-prefect", "--quiet")
    done = audiobatch("run", tmp_path / "my calls", *arguments, env=env)
    assert done.returncode == 0, done.stderr

    one = visit(out / "report.html")
    for place in range(2):
        one.page.locator(".clip-input .play").nth(place).click()
        one.until("document.getElementById('audio').currentTime > 0.1")
        one.page.locator(".clip-reply .play").nth(place).click()
        one.until("document.getElementById('audio').currentTime > 0.1")
    assert one.page.locator(".clip .wave path").count() >= 4, "each recording has its picture"
    one.page.locator("body").click(position={"x": 2, "y": 2})
    one.page.locator(".mark", has_text="redo").nth(1).click()
    with one.page.expect_download() as download:
        one.page.click("#export")
    download.value.save_as(tmp_path / "review.csv")

    applied = audiobatch("review", out, "--apply", tmp_path / "review.csv", env=env)
    assert "tür/c#1.wav: no mark → redo" in applied.stdout, applied.stderr
    again = audiobatch("retry", out, "--review", "redo", "--no-prefect", "--quiet", "--json", env=env)
    assert last_json(again.stdout)["succeeded"] == 1
    assert [row["version"] for row in read_manifest(out / "manifest.csv")] == ["1", "2"]

    one.page.reload()
    assert one.page.locator(".mark[aria-pressed=true]").count() == 0, "the new reply has no mark yet"
