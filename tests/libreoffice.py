"""LibreOffice without a window, with a profile of its own: what a reviewer's spreadsheet does to our files."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.needed import need

# CSV import: comma, double quote, UTF-8, from line 1, cells as they come, and "evaluate formulas" switched on,
# which is the dangerous way to open a file.
IMPORT_EVALUATING = "CSV:44,34,76,1,,0,false,true,false,false,false,-1,true"
AS_CSV = "csv:Text - txt - csv (StarCalc):44,34,76"


class LibreOffice:
    """Opens a file and saves it as another."""

    def __init__(self, profile: Path) -> None:
        self._program = need("soffice")
        self._profile = profile.as_uri()

    def save(self, path: Path, to: str, *options: str) -> Path:
        folder = path.parent / f"saved-{to.partition(':')[0]}"
        command = [self._program, f"-env:UserInstallation={self._profile}", "--headless", *options]
        command += ["--convert-to", to, "--outdir", str(folder), str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        saved = folder / f"{path.stem}.{to.partition(':')[0]}"
        assert saved.is_file(), done.stderr
        return saved
