"""Export the approved clips, for a customer: a folder of their own, with a manifest of their own."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from audiobatch.errors import ConfigError, InputError, StorageError
from audiobatch.reports.manifest import read_manifest, write_csv
from audiobatch.reports.staging import draft_beside, replace_with
from audiobatch.storage.local import LocalStorage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from audiobatch.reports.manifest import ManifestRow
    from audiobatch.storage.local import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What was exported, and the items of approved rows whose file no longer exists."""

    clips: int
    manifest: Path
    missing: tuple[str, ...]


def export_approved(
    chunks: Iterable[Sequence[ManifestRow]],
    storage: Storage,
    target: Path,
    *,
    extra_columns: Sequence[str] = (),
) -> Exported:
    """Copy every clip marked `ok` from the output into `target`, and write `target/manifest.csv`.

    The clips' names and sub-folders stay the same, without the leading `audio/`. Nothing is written outside
    `target` or through a symbolic link. A clip that exists with the same size and time is not copied again.

    Raises:
        ConfigError: `target` is the output folder, contains it, or holds files of the user's own.
        StorageError: a copy failed.
    """
    folder = storage.root
    if isinstance(folder, Path) and folder.is_relative_to(target.resolve()):
        raise ConfigError(f"--export {target}: is the job's own folder, or contains it; name another one")
    counts: dict[str, int] = {"clips": 0}
    missing: list[str] = []
    try:
        target.mkdir(parents=True, exist_ok=True)
        is_taken = any(target.iterdir()) and not _is_earlier_export(target / "manifest.csv")
    except OSError as error:
        raise StorageError(f"{target}: cannot be created: {error.strerror or error}") from error
    if is_taken:
        raise ConfigError(
            f"--export {target}: it holds files that an export could overwrite; name a new folder, or that of an "
            "earlier export"
        )

    def copied() -> Iterator[list[ManifestRow]]:
        for chunk in chunks:
            exported: list[ManifestRow] = []
            for row in chunk:
                path = row.get("audio_file")
                if row.get("review") != "ok" or not isinstance(path, str) or not path:
                    continue
                name = _copy(storage, path, target)
                if name is None:
                    missing.append(str(row.get("item_id")))
                    continue
                counts["clips"] += 1
                exported.append({**row, "audio_file": name, "transcript_file": ""})
            yield exported

    with draft_beside(target / "manifest.csv") as draft:
        with draft.open("wb") as out:
            write_csv(copied(), out, extra_columns=extra_columns)
        written = replace_with(draft, target / "manifest.csv")
    return Exported(clips=counts["clips"], manifest=written.path, missing=tuple(missing))


def _is_earlier_export(manifest: Path) -> bool:
    """Whether there is a manifest that audiobatch wrote."""
    try:
        return "item_id" in read_manifest(manifest).columns
    except InputError:
        return False


def _copy(storage: Storage, path: str, target: Path) -> str | None:
    """Copy one clip and return its path relative to the target; None where it is gone or outside the folder."""
    inside = PurePosixPath(path)
    name = (
        PurePosixPath(*inside.parts[1:]) if inside.parts[0] == "audio" and len(inside.parts) > 1 else inside
    )
    if name.is_absolute() or ".." in name.parts:
        return None
    source: Path | None = None
    if isinstance(storage, LocalStorage):
        source = storage.root / path
        if not source.resolve().is_relative_to(storage.root) or not source.is_file():
            return None
    elif not storage.exists(path):
        return None
    copy = target / name
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.parent.resolve().is_relative_to(target.resolve()):
            raise StorageError(f"{copy}: a symbolic link leads out of the folder")
        if source is not None and copy.is_file() and not copy.is_symlink():
            old, new = copy.stat(), source.stat()
            if (old.st_size, old.st_mtime_ns) == (new.st_size, new.st_mtime_ns):
                return name.as_posix()
        with draft_beside(copy) as draft:
            if source is not None:
                shutil.copy2(source, draft)
            else:
                draft.write_bytes(storage.read(path))
            replace_with(draft, copy)
    except OSError as error:
        raise StorageError(f"{copy}: cannot be written: {error.strerror or error}") from error
    return name.as_posix()
