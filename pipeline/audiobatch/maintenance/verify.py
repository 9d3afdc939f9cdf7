"""Compare an output folder with its ledger, and repair what can be repaired without sending.

The ledger is the truth. Each outcome's files are read and hashed, the manifest is compared cell by cell, and the
result folders are searched for files without a result.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from audiobatch.errors import InputError, shown
from audiobatch.inputs.remote import PrefetchingMap
from audiobatch.model import Status
from audiobatch.reports.manifest import parse_csv, read_manifest
from audiobatch.reports.views import Views
from audiobatch.storage.atomic_file import TEMPORARY_PREFIX
from audiobatch.storage.local import LocalStorage
from audiobatch.storage.names import RAW_ENDINGS, output_path
from audiobatch.storage.versions import (
    RESULT_FOLDERS,
    UNRECORDED,
    bare_samples_path,
    files_of,
    restore,
    version_path,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.ledger.ledger import Ledger
    from audiobatch.model import Outcome
    from audiobatch.storage.local import Storage
    from audiobatch.storage.spool import Spool

#: Without `parts`: its files belong to results that the next run completes, and no outcome names them.
_CHECKED_FOLDERS = tuple(name for name in RESULT_FOLDERS if name != "parts")
#: Columns that a reviewer may change.
_REVIEW_COLUMNS = frozenset({"review", "review_note"})


class Trouble(StrEnum):
    """What can be wrong. The values are part of `verify`'s output."""

    MISSING = "missing"
    CHANGED = "changed"
    LEFT_OVER = "left over"
    TEMPORARY = "temporary"
    MANIFEST = "manifest"
    SPOOLED = "not brought home"
    OPEN_CALL = "open call"
    DATABASE = "database"


#: Paths of wrong files, with what is wrong with each.
WrongFiles = dict[str, tuple[Trouble, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is wrong.

    Attributes:
        where: a path relative to the folder, or an item.
        what: what is wrong, as the end of a sentence about `where`.
        repaired: whether it was repaired.
    """

    trouble: Trouble
    where: str
    what: str
    repaired: bool = False


@dataclass(slots=True, kw_only=True)
class Verified:
    """What was checked, and what is wrong."""

    outcomes: int = 0
    files: int = 0
    size_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def wrong(self) -> list[Finding]:
        """The findings that were not repaired."""
        return [finding for finding in self.findings if not finding.repaired]


@dataclass(slots=True, kw_only=True)
class Verification:
    """One check of a folder.

    Attributes:
        repair: whether to repair what can be; the caller must hold the folder's lock.
        running: whether a run is active; then only the files of outcomes are checked.
        result: what was checked and found so far.
    """

    storage: Storage
    ledger: Ledger
    spec: JobSpec
    spool: Spool
    repair: bool = False
    running: bool = False
    result: Verified = field(default_factory=Verified)
    _expected: set[str] = field(default_factory=set)

    def run(self) -> Verified:
        """Check everything, and repair it on the way if `repair` is set.

        Raises:
            StorageError: the folder cannot be read, or a repair cannot be written.
        """
        self._database()
        if self.result.findings:
            return self.result  # a damaged ledger says nothing reliable about files
        for outcome, wrong in self._compared(earlier=False):
            self._outcome(outcome, wrong)
        for outcome, wrong in self._compared(earlier=True):
            self._version(outcome, wrong)
        if not self.running:
            self._left_over()
            self._calls()
            self._manifest()
        return self.result

    def _compared(self, *, earlier: bool) -> Iterator[tuple[Outcome, WrongFiles]]:
        """Yield each outcome with its wrong files; those in a store are checked in threads."""
        outcomes = self.ledger.reader.all_outcomes(earlier=earlier)
        check = partial(self._wrong_files, earlier=earlier)
        if isinstance(self.storage, LocalStorage):
            yield from ((outcome, check(outcome)) for outcome in outcomes)
            return
        for outcome, wrong in PrefetchingMap(check).results((outcome, True) for outcome in outcomes):
            yield outcome, wrong or {}

    def _report(self, trouble: Trouble, where: str, what: str, *, repaired: bool = False) -> None:
        self.result.findings.append(Finding(trouble=trouble, where=where, what=what, repaired=repaired))

    def _database(self) -> None:
        for damage in self.ledger.reader.damage():
            self._report(Trouble.DATABASE, "ledger.db", damage)

    def _outcome(self, outcome: Outcome, before: WrongFiles) -> None:
        self.result.outcomes += 1
        self._count(outcome)
        self._expected.update(files_of(outcome))
        for ending in RAW_ENDINGS:  # a bad reply's file stays also after a good reply
            self._expected.add(
                output_path(outcome.item_id, folder="replies", ending=ending, turn=outcome.turn)
            )
        if before and self.repair and outcome.status is Status.SUCCEEDED and restore(self.storage, outcome):
            after = self._wrong_files(outcome)
            for path, (trouble, what) in before.items():
                self._report(trouble, path, what, repaired=path not in after)
            return
        for path, (trouble, what) in before.items():
            self._report(trouble, path, what)

    def _version(self, outcome: Outcome, wrong: WrongFiles) -> None:
        self._count(outcome)
        for path in files_of(outcome):
            self._expected.add(version_path(path, outcome.version))
        for path, (trouble, what) in wrong.items():
            self._report(trouble, path, what)

    def _count(self, outcome: Outcome) -> None:
        for file in (outcome.audio, outcome.transcript_file, outcome.raw_reply):
            if file is not None:
                self.result.files += 1
                self.result.size_bytes += file.size_bytes

    def _wrong_files(self, outcome: Outcome, *, earlier: bool = False) -> WrongFiles:
        """Return the files of an outcome that are missing or changed; may be called from any thread."""
        wrong: WrongFiles = {}
        turn = f"{shown(outcome.item_id)} turn {outcome.turn}"
        for file in (outcome.audio, outcome.transcript_file, outcome.raw_reply):
            if file is None:
                continue
            path = version_path(file.path, outcome.version) if earlier else file.path
            if not self.storage.exists(path):
                wrong[path] = (Trouble.MISSING, f"of {turn}, is gone")
            elif (size_bytes := self.storage.size(path)) != file.size_bytes:
                wrong[path] = (Trouble.CHANGED, f"of {turn}, has {size_bytes} bytes, not {file.size_bytes}")
            elif self.storage.sha256(path) != file.sha256:
                wrong[path] = (Trouble.CHANGED, f"of {turn}, is not what was recorded")
        if outcome.audio and outcome.format == "pcm16":
            bare = bare_samples_path(outcome.audio.path)
            bare = version_path(bare, outcome.version) if earlier else bare
            if not self.storage.exists(bare):
                wrong[bare] = (Trouble.MISSING, f"of {turn}, is gone")
        return wrong

    def _left_over(self) -> None:
        for path in self._temporary():
            if self.repair:
                self.storage.delete(path)
            self._report(Trouble.TEMPORARY, path, "was left by a killed run", repaired=self.repair)
        for path in self._results():
            if path in self._expected:
                continue
            if self.repair:
                self.storage.write(f"{UNRECORDED}/{path}", self.storage.read(path))
                self.storage.delete(path)
            self._report(Trouble.LEFT_OVER, path, "belongs to no recorded result", repaired=self.repair)

    def _temporary(self) -> list[str]:
        return [path for path in self.storage.walk() if _name(path).startswith(TEMPORARY_PREFIX)]

    def _results(self) -> list[str]:
        paths = (path for name in _CHECKED_FOLDERS for path in self.storage.walk(name))
        return [
            path
            for path in paths
            if not path.startswith(UNRECORDED + "/") and not _name(path).startswith(TEMPORARY_PREFIX)
        ]

    def _calls(self) -> None:
        for entry in self.spool.entries():
            self._report(
                Trouble.SPOOLED,
                entry.name,
                f"its reply is in the spool, {entry.path}; the next run records it",
            )
        for call in self.ledger.reader.open_calls():
            self._report(
                Trouble.OPEN_CALL,
                f"{shown(call['item_id'])} turn {call['turn']}",
                "the call was in flight when a run was killed; the next run settles it",
            )

    def _manifest(self) -> None:
        difference = self._manifest_difference()
        if difference and self.repair:
            Views(self.storage, self.ledger, self.spec, run_id=None).write_all()
            after = self._manifest_difference()
            self._report(Trouble.MANIFEST, Views.MANIFEST, difference, repaired=not after)
        elif difference:
            self._report(Trouble.MANIFEST, Views.MANIFEST, difference)

    def _manifest_difference(self) -> str:
        """Say how the manifest differs from the ledger; empty where it does not."""
        if not self.storage.exists(Views.MANIFEST):
            # A run that is killed early writes none.
            return "is gone" if self.ledger.reader.has_finished_run() else ""
        with tempfile.TemporaryDirectory(prefix="audiobatch-") as scratch:
            Views(LocalStorage(Path(scratch)), self.ledger, self.spec, run_id=None).write_manifest()
            fresh = Path(scratch, Views.MANIFEST)
            content = self.storage.read(Views.MANIFEST)
            if fresh.read_bytes() == content:
                return ""
            try:
                actual, expected = parse_csv(content, Views.MANIFEST), read_manifest(fresh)
            except InputError as failed:
                return failed.message
        if len(actual) != len(expected):
            return f"has {len(actual)} rows, not {len(expected)}"
        for name in expected.columns:
            if name in _REVIEW_COLUMNS:
                continue
            if name not in actual.columns:
                return f"lacks the column {name}"
            differing = (actual[name] != expected[name]).to_numpy().nonzero()[0]
            if len(differing):
                item_id = str(expected["item_id"].iloc[int(differing[0])])
                return f"differs from the ledger in {name} of {shown(item_id)}"
        return ""


def _name(path: str) -> str:
    return path.rpartition("/")[2]
