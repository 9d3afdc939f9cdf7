"""Discovery in object stores: the rules are those of local folders, the reading is `remote_inputs`'.

An id is the object's path relative to the root that was given, whose name is the last part of its address.
"""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from audiobatch.audio.probe import looks_like_audio
from audiobatch.errors import ConfigError, InputError, StorageError
from audiobatch.inputs.ahead import Ahead
from audiobatch.inputs.found import Found, probed_source, unchanged, without_probing
from audiobatch.inputs.remote_inputs import Prober, Unread, local_copy, read_text, survey
from audiobatch.inputs.tables import TABLE_ENDINGS, lines_of, text_source
from audiobatch.storage.remote import FsspecStorage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from audiobatch.address import Address
    from audiobatch.audio.probe import Probed
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.inputs.found import Known, Tally
    from audiobatch.inputs.tables import Ids, Table
    from audiobatch.model import Source
    from audiobatch.storage.listing import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class _Object:
    """An object that is an input: a recording, or else a prompt."""

    storage: FsspecStorage
    entry: Entry
    item_id: str
    found: Found | None = None


_Fetched = tuple[str, str]


@dataclass(slots=True, kw_only=True)
class RemoteDiscovery:
    """The remote inputs of one discovery, which shares its ids and counts.

    Attributes:
        marker: the name of the file that makes a folder an output of ours.
        wanted: whether `include` and `exclude` let a path through.
        table: makes a table of a name and a root.
    """

    spec: JobSpec
    marker: str
    known: Mapping[str, Known]
    tally: Tally
    ids: Ids
    wanted: Callable[[PurePosixPath], bool]
    table: Callable[[str, str], Table]
    _kinds: dict[Address, str] = field(default_factory=dict)

    def is_folder(self, address: Address) -> bool:
        """Whether it is a folder; an object otherwise.

        Raises:
            ConfigError: nothing is there, or nobody can tell.
        """
        if address not in self._kinds:
            try:
                kind = FsspecStorage(address).kind_of_root()
            except StorageError as failed:
                raise ConfigError(failed.message) from failed
            if kind is None:
                raise ConfigError(f"{address}: there is no such file or folder")
            self._kinds[address] = kind
        return self._kinds[address] == "folder"

    def sources(self, given: Iterable[tuple[Address, str]]) -> Iterator[Source]:
        """Every input of these places, in order; each with the prefix that its ids get.

        Raises:
            ConfigError: one is of no known kind, or cannot be read.
        """
        with Prober() as prober:

            def work(one: Source | _Object) -> Probed | InputError | _Fetched:
                assert isinstance(one, _Object)
                if one.found is not None:
                    return prober.probe(one.storage, one.entry)
                return read_text(one.storage, one.entry)

            try:
                for one, result in Ahead(work).results(self._with_need(self._objects(given))):
                    yield self._source(one, result)
            except StorageError as failed:
                raise ConfigError(failed.message) from failed

    def _with_need(self, found: Iterable[Source | _Object]) -> Iterator[tuple[Source | _Object, bool]]:
        for one in found:
            needed = isinstance(one, _Object)
            if isinstance(one, _Object) and one.found is not None:
                needed = unchanged(one.found, self.known) is None
                self.tally.probed += needed
            yield one, needed

    def _source(self, one: Source | _Object, result: Probed | InputError | _Fetched | None) -> Source:
        if not isinstance(one, _Object):
            return one
        if one.found is not None:
            if result is None:
                return without_probing(one.found, self.known)
            assert not isinstance(result, tuple)
            # Without a version, the next run tries again.
            found = replace(one.found, mtime_ns=0) if isinstance(result, Unread) else one.found
            return probed_source(found, result)
        assert isinstance(result, tuple)
        text, refusal = result
        return text_source(
            text,
            ids=self.ids,
            root=str(one.storage.root),
            path=one.entry.path,
            item_id=one.item_id,
            refusal=refusal,
        )

    def _objects(self, given: Iterable[tuple[Address, str]]) -> Iterator[Source | _Object]:
        for address, prefix in given:
            if self.is_folder(address):
                yield from self._folder(address, prefix)
            else:
                yield from self._file(address, prefix)

    def _folder(self, address: Address, prefix: str) -> Iterator[Source | _Object]:
        storage = FsspecStorage(address)
        seen = survey(storage, self.marker, self.wanted)
        if "" in seen.outputs:
            raise ConfigError(f"{address}: is an output folder of audiobatch, not an input")
        for entry in storage.entries():
            path = PurePosixPath(entry.path)
            if not seen.counts(entry.path):
                continue
            if not self.wanted(path):
                self.tally.left_out += 1
            elif seen.has_recordings and looks_like_audio(path.name):
                yield self._recording(storage, entry, prefix)
            elif not seen.has_recordings and path.suffix.lower() == ".txt":
                if self.spec.one_prompt_per_line:
                    yield from self._lines(storage, entry)
                else:
                    yield _Object(storage=storage, entry=entry, item_id=prefix + entry.path)
            else:
                self.tally.other_files += 1

    def _file(self, address: Address, prefix: str) -> Iterator[Source | _Object]:
        storage = FsspecStorage(address.parent)
        entry = storage.stat(address.name)
        if entry is None:
            raise ConfigError(f"{address}: there is no such file or folder")
        ending = address.suffix.lower()
        if ending in TABLE_ENDINGS:
            with _at_hand(storage, entry) as here:
                yield from self.table(entry.path, str(storage.root)).from_file(here)
        elif ending == ".txt" and self.spec.one_prompt_per_line:
            yield from self._lines(storage, entry)
        elif ending == ".txt":
            yield _Object(storage=storage, entry=entry, item_id=prefix + entry.path)
        elif looks_like_audio(entry.path):
            yield self._recording(storage, entry, prefix)
        else:
            raise ConfigError(
                f"{address}: of no known kind. Inputs are folders, recordings (.wav, .mp3, …), .txt prompts, "
                f"and tables ({' '.join(TABLE_ENDINGS)})"
            )

    def _recording(self, storage: FsspecStorage, entry: Entry, prefix: str) -> _Object:
        item_id = self.ids.unique(prefix + entry.path)
        found = Found(
            item_id=item_id,
            root=str(storage.root),
            path=entry.path,
            size_bytes=entry.size_bytes,
            mtime_ns=entry.version,
        )
        return _Object(storage=storage, entry=entry, item_id=item_id, found=found)

    def _lines(self, storage: FsspecStorage, entry: Entry) -> Iterator[Source]:
        with _at_hand(storage, entry) as here:
            yield from lines_of(
                here, root=str(storage.root), ids=self.ids, name=PurePosixPath(entry.path).name
            )


@contextlib.contextmanager
def _at_hand(storage: FsspecStorage, entry: Entry) -> Iterator[Path]:
    """A copy of a table or a text for the block; errors name the object, not the copy."""
    with tempfile.TemporaryDirectory(prefix="audiobatch-") as folder:
        here = local_copy(Path(folder), entry.path)
        try:
            storage.fetch(entry.path, here, entry)
        except StorageError as failed:
            raise ConfigError(failed.message) from failed
        try:
            yield here
        except ConfigError as refused:
            raise ConfigError(refused.message.replace(str(here), str(storage.root / entry.path))) from refused
