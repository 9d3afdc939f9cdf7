"""Is everything there that the ledger says is there, and nothing else? And what can be put right without sending.

The ledger is the truth. Each outcome's files are read and hashed, the manifest is compared cell by cell, and the
result folders are searched for what belongs to nothing.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from audiobatch.errors import InputError, shown
from audiobatch.inputs.remote import PrefetchingMap
from audiobatch.model import Status
from audiobatch.reports.manifest import read_manifest
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

#: Without `parts`: what lies there is on its way, no outcome names it, and the next run goes on with it.
_CHECKED_FOLDERS = tuple(name for name in RESULT_FOLDERS if name != "parts")
#: A reviewer's, not the ledger's.
_REVIEWERS = frozenset({"review", "review_note"})


class Trouble(StrEnum):
    """What can be wrong. The words stand in `verify`'s output."""

    MISSING = "missing"
    CHANGED = "changed"
    LEFT_OVER = "left over"
    TEMPORARY = "temporary"
    MANIFEST = "manifest"
    NOT_HOME = "not brought home"
    OPEN_CALL = "open call"
    DATABASE = "database"


#: Paths, with what is wrong with each.
Wrong = dict[str, tuple[Trouble, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        where: a path relative to the folder, or an item.
        what: a sentence for a person.
        repaired: it was put right.
    """

    trouble: Trouble
    where: str
    what: str
    repaired: bool = False


@dataclass(slots=True, kw_only=True)
class Verified:
    """What was looked at, and what was found."""

    outcomes: int = 0
    files: int = 0
    size_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def wrong(self) -> list[Finding]:
        """What is still wrong."""
        return [one for one in self.findings if not one.repaired]

    def counts(self) -> dict[str, int]:
        return dict(Counter(one.trouble.value for one in self.findings))


@dataclass(slots=True, kw_only=True)
class Verification:
    """One look at one folder.

    Attributes:
        repair: put right what can be: only for the holder of the folder's lock.
        running: a run is at work; what it has in hand is no fault.
    """

    storage: Storage
    ledger: Ledger
    spec: JobSpec
    spool: Spool
    repair: bool = False
    running: bool = False
    seen: Verified = field(default_factory=Verified)
    _known: set[str] = field(default_factory=set)

    def run(self) -> Verified:
        """Look at everything; repair on the way, where that was asked for.

        Raises:
            StorageError: the folder cannot be read, or a repair cannot be written.
        """
        self._database()
        if self.seen.findings:
            return self.seen  # what a broken ledger says of files means nothing
        for outcome, wrong in self._compared(earlier=False):
            self._outcome(outcome, wrong)
        for outcome, wrong in self._compared(earlier=True):
            self._version(outcome, wrong)
        if not self.running:
            self._left_over()
            self._calls()
            self._manifest()
        return self.seen

    def _compared(self, *, earlier: bool) -> Iterator[tuple[Outcome, Wrong]]:
        """Each outcome with what is wrong with its files; in a store, of many at once."""
        outcomes = self.ledger.all_outcomes(earlier=earlier)
        look = partial(self._wrong_files, earlier=earlier)
        if isinstance(self.storage, LocalStorage):
            yield from ((outcome, look(outcome)) for outcome in outcomes)
            return
        for outcome, wrong in PrefetchingMap(look).results((outcome, True) for outcome in outcomes):
            yield outcome, wrong or {}

    def _found(self, trouble: Trouble, where: str, what: str, *, repaired: bool = False) -> None:
        self.seen.findings.append(Finding(trouble=trouble, where=where, what=what, repaired=repaired))

    def _database(self) -> None:
        for words in self.ledger.damage():
            self._found(Trouble.DATABASE, "ledger.db", words)

    def _outcome(self, outcome: Outcome, before: Wrong) -> None:
        self.seen.outcomes += 1
        self._count(outcome)
        self._known.update(files_of(outcome))
        for ending in RAW_ENDINGS:  # a bad reply is kept also when a good one has come since
            self._known.add(output_path(outcome.item_id, folder="replies", ending=ending, turn=outcome.turn))
        if before and self.repair and outcome.status is Status.SUCCEEDED and restore(self.storage, outcome):
            after = self._wrong_files(outcome)
            for path, (trouble, what) in before.items():
                self._found(trouble, path, what, repaired=path not in after)
            return
        for path, (trouble, what) in before.items():
            self._found(trouble, path, what)

    def _version(self, outcome: Outcome, wrong: Wrong) -> None:
        self._count(outcome)
        for path in files_of(outcome):
            kept = version_path(path, outcome.version)
            self._known.add(kept)
        for path, (trouble, what) in wrong.items():
            self._found(trouble, path, what)

    def _count(self, outcome: Outcome) -> None:
        for file in (outcome.audio, outcome.transcript_file, outcome.raw_reply):
            if file is not None:
                self.seen.files += 1
                self.seen.size_bytes += file.size_bytes

    def _wrong_files(self, outcome: Outcome, *, earlier: bool = False) -> Wrong:
        """Files of an outcome that are gone or are not what was recorded. For any thread."""
        wrong: Wrong = {}
        whose = f"{shown(outcome.item_id)} turn {outcome.turn}"
        for file in (outcome.audio, outcome.transcript_file, outcome.raw_reply):
            if file is None:
                continue
            path = version_path(file.path, outcome.version) if earlier else file.path
            if not self.storage.exists(path):
                wrong[path] = (Trouble.MISSING, f"of {whose}, is gone")
            elif (size_bytes := self.storage.size(path)) != file.size_bytes:
                wrong[path] = (Trouble.CHANGED, f"of {whose}, has {size_bytes} bytes, not {file.size_bytes}")
            elif self.storage.sha256(path) != file.sha256:
                wrong[path] = (Trouble.CHANGED, f"of {whose}, is not what was recorded")
        if outcome.audio and outcome.format == "pcm16":
            bare = bare_samples_path(outcome.audio.path)
            bare = version_path(bare, outcome.version) if earlier else bare
            if not self.storage.exists(bare):
                wrong[bare] = (Trouble.MISSING, f"of {whose}, is gone")
        return wrong

    def _left_over(self) -> None:
        for path in self._temporary():
            if self.repair:
                self.storage.delete(path)
            self._found(Trouble.TEMPORARY, path, "was left by a killed run", repaired=self.repair)
        for path in self._results():
            if path in self._known:
                continue
            if self.repair:
                self.storage.write(f"{UNRECORDED}/{path}", self.storage.read(path))
                self.storage.delete(path)
            self._found(Trouble.LEFT_OVER, path, "belongs to no recorded result", repaired=self.repair)

    def _temporary(self) -> list[str]:
        return [path for path in self.storage.walk() if _name(path).startswith(TEMPORARY_PREFIX)]

    def _results(self) -> list[str]:
        found = (path for name in _CHECKED_FOLDERS for path in self.storage.walk(name))
        return [
            path
            for path in found
            if not path.startswith(UNRECORDED + "/") and not _name(path).startswith(TEMPORARY_PREFIX)
        ]

    def _calls(self) -> None:
        for entry in self.spool.entries():
            self._found(
                Trouble.NOT_HOME, entry.name, f"its reply waits at {entry.path}; the next run brings it home"
            )
        for call in self.ledger.open_calls():
            self._found(
                Trouble.OPEN_CALL,
                f"{shown(call['item_id'])} turn {call['turn']}",
                "was in flight when a run was killed; the next run settles it",
            )

    def _manifest(self) -> None:
        trouble = self._manifest_differs()
        if trouble and self.repair:
            Views(self.storage, self.ledger, self.spec, run_id=None).write_all()
            after = self._manifest_differs()
            self._found(Trouble.MANIFEST, Views.MANIFEST, trouble, repaired=not after)
        elif trouble:
            self._found(Trouble.MANIFEST, Views.MANIFEST, trouble)

    def _manifest_differs(self) -> str:
        """How the manifest differs from the ledger; empty where it does not."""
        if not self.storage.exists(Views.MANIFEST):
            return (
                "is gone" if self.ledger.has_finished_run() else ""
            )  # a run that is killed early writes none
        with tempfile.TemporaryDirectory(prefix="audiobatch-") as scratch:
            Views(LocalStorage(Path(scratch)), self.ledger, self.spec, run_id=None).write_manifest()
            fresh = Path(scratch, Views.MANIFEST)
            there = self.storage.read(Views.MANIFEST)
            if fresh.read_bytes() == there:
                return ""
            found = Path(scratch, f"found-{Views.MANIFEST}")
            found.write_bytes(there)
            try:
                have, want = read_manifest(found), read_manifest(fresh)
            except InputError as failed:
                return failed.message.replace(str(found), Views.MANIFEST)
        if len(have) != len(want):
            return f"has {len(have)} rows, not {len(want)}"
        for name in want.columns:
            if name in _REVIEWERS:
                continue
            if name not in have.columns:
                return f"lacks the column {name}"
            differs = (have[name] != want[name]).to_numpy().nonzero()[0]
            if len(differs):
                return f"differs from the ledger in {name} of {shown(str(want['item_id'].iloc[int(differs[0])]))}"
        return ""


def _name(path: str) -> str:
    return path.rpartition("/")[2]
