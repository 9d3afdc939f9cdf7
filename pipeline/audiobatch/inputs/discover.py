"""Inputs on the command line become Sources: folders walked, files probed, tables read; all streamed.

What an id is, is promised in the README: the path relative to its root (with the root's name in front when
there are several), a table's `id`, or a hash of the prompt; never a row number, so that inserting an input
shifts no other.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from itertools import groupby
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING, NamedTuple

from audiobatch.address import Address, is_remote, place_of
from audiobatch.audio.probe import looks_like_audio, probe_many
from audiobatch.config.jobspec import placeholders
from audiobatch.errors import ConfigError, InputError, NothingFound, shown
from audiobatch.inputs.found import (
    DiscoveryStats,
    Found,
    probed_source,
    readable_name,
    unchanged,
    without_probing,
)
from audiobatch.inputs.sound_settings import SIDE_MARKS
from audiobatch.inputs.table_bounds import lines_within
from audiobatch.inputs.tables import (
    TABLE_ENDINGS,
    Ids,
    Table,
    lines_of,
    read_text_file,
    text_source,
)
from audiobatch.storage.names import Claims
from audiobatch.storage.output import JOB_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from audiobatch.address import Place
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.inputs.found import Known
    from audiobatch.inputs.remote import RemoteDiscovery
    from audiobatch.model import Source

#: A folder that holds this file is an output folder of ours: its replies are never taken for inputs.


@dataclass(slots=True)
class Discovery:
    """One walk over a job's inputs.

    Attributes:
        known: what an earlier probing found, by item id (`Ledger.known_files`): unchanged files are not read.
        stdin: where `-` is read from.
        is_arriving: says of a file that it is to be left for a later run; None: take all.
    """

    spec: JobSpec
    known: Mapping[str, Known] = field(default_factory=dict)
    stdin: IO[bytes] | None = None
    is_arriving: Callable[[Path], bool] | None = None
    stats: DiscoveryStats = field(default_factory=DiscoveryStats)
    _ids: Ids = field(default_factory=Ids)
    _in_stores: RemoteDiscovery | None = None

    def sources(self) -> Iterator[Source]:
        """Every input, in order, numbered by position.

        Raises:
            ConfigError: an input is not there or of no known kind.
            NothingFound: nothing at all was found.
        """
        position = 0
        # Names made from paths are apart by themselves; a table's ids and file names can be anything.
        claims = Claims() if any(map(_is_table, self.spec.inputs)) else None
        for source in self._sides(self._everything()):
            position += 1
            refusal = source.refusal or (_name_taken(source, claims) if claims else "")
            yield replace(source, position=position, refusal=refusal)
        if position == 0:
            raise NothingFound(self._nothing())

    def files(self) -> Iterator[Path]:
        """The files that `sources` would read, without reading them; what is not there is left out."""
        for given in self.spec.inputs:
            path = _place(given)
            assert isinstance(path, Path)  # a store is not watched
            if path.is_dir():
                root = path.resolve()
                for one in _walk(str(root), DiscoveryStats()):
                    is_input = looks_like_audio(one.name) or _is_text(one.name)
                    if is_input and self._wanted(one.relative):
                        yield Path(one.full_path)
            elif path.exists():
                yield path.resolve()

    def _sides(self, sources: Iterable[Source]) -> Iterator[Source]:
        """The same; under a channel split a two-sided recording is two items."""
        for source in sources:
            if self.spec.channels == "split" and source.media is not None and source.media.channels == 2:
                for mark in SIDE_MARKS:
                    yield replace(source, item_id=self._ids.unique(source.item_id + mark))
            else:
                yield source

    def _everything(self) -> Iterator[Source]:
        roots = self._roots()
        if not self.spec.inputs:
            raise ConfigError(
                "no input given: name a folder, a file, or '-' for JSON Lines on standard input"
            )
        # Neighbours of one kind together: the workers that probe them are started once.
        for remote, given in groupby(self.spec.inputs, key=is_remote):
            if remote:
                yield from self._remote.sources(self._remote_inputs(given, roots))
            else:
                yield from self._probed(self._local(given, roots))

    def _local(self, inputs: Iterable[str], roots: Mapping[Place, str]) -> Iterator[Source | Found]:
        for given in inputs:
            if given == "-":
                yield from self._table("-", "").from_stream(self._stdin_lines())
                continue
            path = _place(given)
            assert isinstance(path, Path)
            if path.is_dir():
                yield from self._folder(path, roots.get(path.resolve(), ""))
            elif self.is_arriving is None or not self.is_arriving(path.resolve()):
                yield from self._file(path, roots.get(path.resolve().parent, ""))

    def _remote_inputs(
        self, inputs: Iterable[str], roots: Mapping[Place, str]
    ) -> Iterator[tuple[Address, str]]:
        for given in inputs:
            address = _place(given)
            assert isinstance(address, Address)
            root = address if self._remote.is_folder(address) else address.parent
            yield address, roots.get(root, "")

    @property
    def _remote(self) -> RemoteDiscovery:
        """Made when it is needed: local inputs have no use for clients of stores."""
        if self._in_stores is None:
            from audiobatch.inputs.remote import RemoteDiscovery

            self._in_stores = RemoteDiscovery(
                spec=self.spec,
                marker=JOB_FILE,
                known=self.known,
                stats=self.stats,
                ids=self._ids,
                wanted=self._wanted,
                table=self._table,
            )
        return self._in_stores

    def _stdin_lines(self) -> Iterable[bytes]:
        if self.stdin is None:
            raise ConfigError("'-' reads JSON Lines from standard input, and there is none here")
        return lines_within(self.stdin, "standard input")

    def _roots(self) -> dict[Place, str]:
        """Roots with the prefix that their ids get: none for a single root, its name among several."""
        roots: dict[Place, None] = {}
        seen: dict[Place, str] = {}
        for given in self.spec.inputs:
            if given == "-":
                continue
            place = _place(given)
            if isinstance(place, Address):
                is_folder = self._remote.is_folder(place)
            elif place.exists():
                is_folder = place.is_dir()
                place = place.resolve()
            else:
                raise ConfigError(f"{shown(given)}: there is no such file or folder")
            for earlier, name in seen.items():
                if _is_within(place, earlier) or _is_within(earlier, place):
                    part, whole = (given, name) if _is_within(place, earlier) else (name, given)
                    raise ConfigError(f"{part}: is already part of {whole}; give each input once")
            seen[place] = given
            roots[place if is_folder else place.parent] = None
        if len(roots) < 2:
            return dict.fromkeys(roots, "")
        names: dict[str, Place] = {}
        for root in roots:
            if root.name in names:
                raise ConfigError(
                    f"two inputs are called {root.name!r} ({names[root.name]} and {root}), so their ids would "
                    "clash; run them apart, with an --output each"
                )
            names[root.name] = root
        return {root: f"{root.name}/" for root in roots}

    def _table(self, name: str, root: str) -> Table:
        first, *others = (bool(placeholders(turn.prompt)) for turn in self.spec.turn_specs())
        return Table(
            name=name,
            root=root,
            ids=self._ids,
            needs_prompt=not first,
            fills_prompts=first or any(others),
        )

    def _file(self, path: Path, prefix: str) -> Iterator[Source | Found]:
        ending = path.suffix.lower()
        root = str(path.resolve().parent)
        if ending in TABLE_ENDINGS:
            yield from self._table(path.name, root).from_file(path)
        elif ending == ".txt" and self.spec.one_prompt_per_line:
            yield from lines_of(path, root=root, ids=self._ids)
        elif ending == ".txt":
            yield self._prompt_file(path.resolve(), root, prefix + path.name, path.name)
        elif looks_like_audio(path.name):
            yield self._recording(_file_of(path.resolve(), path.name), root, prefix + path.name)
        else:
            raise ConfigError(
                f"{shown(path)}: of no known kind. Inputs are folders, recordings (.wav, .mp3, …), .txt "
                f"prompts, and tables ({' '.join(TABLE_ENDINGS)})"
            )

    def _folder(self, folder: Path, prefix: str) -> Iterator[Source | Found]:
        """Recordings if there are any; else .txt prompts. Beside recordings a .txt is a note, not a prompt."""
        if (folder / JOB_FILE).exists():
            raise ConfigError(f"{folder}: is an output folder of audiobatch, not an input")
        root = str(folder.resolve())
        has_recordings = any(
            looks_like_audio(one.name) and self._wanted(one.relative) for one in _walk(root, DiscoveryStats())
        )
        for one in _walk(root, self.stats):
            if not self._wanted(one.relative):
                self.stats.left_out += 1
                continue
            if self.is_arriving is not None and self.is_arriving(Path(one.full_path)):
                continue
            item_id = prefix + one.relative
            if has_recordings and looks_like_audio(one.name):
                yield self._recording(one, root, item_id)
            elif not has_recordings and _is_text(one.name):
                path = Path(one.full_path)
                if self.spec.one_prompt_per_line:
                    yield from lines_of(path, root=root, ids=self._ids)
                else:
                    yield self._prompt_file(path, root, item_id, one.relative)
            else:
                self.stats.other_files += 1

    def _wanted(self, relative: PurePath | str) -> bool:
        """Whether `include` and `exclude` let a folder's file through: by its path, or its name alone."""
        include, exclude = self.spec.include, self.spec.exclude
        if not include and not exclude:
            return True
        whole = relative if isinstance(relative, str) else relative.as_posix()
        names = (whole, whole.rpartition("/")[2])

        def matches(patterns: Iterable[str]) -> bool:
            return any(fnmatch(name, pattern) for pattern in patterns for name in names)

        return (not include or matches(include)) and not matches(exclude)

    def _prompt_file(self, path: Path, root: str, item_id: str, relative: str) -> Source:
        text, refusal = read_text_file(path)
        name, problem = readable_name(item_id)
        return text_source(
            text,
            ids=self._ids,
            root=root,
            path=readable_name(relative)[0],
            item_id=name,
            refusal=problem or refusal,
        )

    def _recording(self, file: _File, root: str, item_id: str) -> Found:
        name, problem = readable_name(item_id)
        return Found(
            item_id=self._ids.unique(name),
            root=root,
            path=readable_name(file.relative)[0],
            full_path=file.full_path,
            size_bytes=file.size_bytes,
            mtime_ns=file.mtime_ns,
            refusal=problem or file.problem,
        )

    def _probed(self, found: Iterator[Source | Found]) -> Iterator[Source]:
        """The same, in the same order, with recordings probed on all cores, a few ahead of the reader."""
        ahead: deque[Source | Found] = deque()

        def to_probe() -> Iterator[Path]:
            for one in found:
                ahead.append(one)
                if isinstance(one, Found) and not one.refusal and unchanged(one, self.known) is None:
                    self.stats.probed += 1
                    yield Path(one.full_path)

        results = probe_many(to_probe())
        for path, result in results:
            while not (isinstance(ahead[0], Found) and ahead[0].full_path == str(path)):
                yield self._without_probing(ahead.popleft())
            waiting = ahead.popleft()
            assert isinstance(waiting, Found)
            yield probed_source(waiting, result)
        while ahead:
            yield self._without_probing(ahead.popleft())

    def _without_probing(self, one: Source | Found) -> Source:
        return without_probing(one, self.known) if isinstance(one, Found) else one

    def _nothing(self) -> str:
        where = ", ".join(self.spec.inputs)
        others = (
            f"; {self.stats.other_files} files with other endings are there" if self.stats.other_files else ""
        )
        links = (
            f"; {self.stats.skipped_links} symbolic links were not followed"
            if self.stats.skipped_links
            else ""
        )
        left = f"; --include and --exclude leave {self.stats.left_out} out" if self.stats.left_out else ""
        return f"{where}: no recordings (.wav, .mp3, …) and no prompts (.txt) found{others}{links}{left}"


def _is_table(given: str) -> bool:
    return given == "-" or PurePath(given).suffix.lower() in TABLE_ENDINGS


def _place(given: str) -> Place:
    try:
        return place_of(given)
    except ValueError as refused:
        raise ConfigError(str(refused)) from None


def _is_within(one: Place, other: Place) -> bool:
    if isinstance(one, Path) and isinstance(other, Path):
        return one.is_relative_to(other)
    return isinstance(one, Address) and isinstance(other, Address) and one.is_within(other)


def _name_taken(source: Source, claims: Claims) -> str:
    """Why a source cannot have the output name that it asks for; empty when it can."""
    try:
        holder = claims.claim(source.item_id, source.settings.filename)
    except InputError as refused:
        return refused.message
    return f"its output would have the same name as that of {holder!r}" if holder else ""


class _File(NamedTuple):
    """A file on disk; text and numbers alone, since there may be a million."""

    name: str
    relative: str
    full_path: str
    size_bytes: int = 0
    mtime_ns: int = 0
    problem: str = ""


def _file_of(path: Path, relative: str) -> _File:
    try:
        found = path.stat()
    except OSError as failed:
        return _File(path.name, relative, str(path), problem=f"it cannot be read: {failed.strerror}")
    return _File(path.name, relative, str(path), found.st_size, found.st_mtime_ns)


def _is_text(name: str) -> bool:
    return name.lower().endswith(".txt")


def _walk(folder: str, stats: DiscoveryStats, below: str = "") -> Iterator[_File]:
    """Files below a folder, depth first, sorted by name; no hidden ones, no links, no output folder of ours."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as failed:
        raise ConfigError(f"{folder}: cannot be read ({failed.strerror})") from failed
    if any(entry.name == JOB_FILE for entry in entries):
        return
    for entry in entries:
        name = entry.name
        if name.startswith("."):
            continue
        relative = below + name
        try:
            seen = entry.stat(follow_symlinks=False)
        except OSError:
            yield _file_of(Path(entry.path), relative)
            continue
        if stat.S_ISREG(seen.st_mode):
            yield _File(name, relative, entry.path, seen.st_size, seen.st_mtime_ns)
        elif stat.S_ISDIR(seen.st_mode):
            yield from _walk(entry.path, stats, relative + "/")
        elif stat.S_ISLNK(seen.st_mode):
            stats.skipped_links += 1
        else:
            stats.other_files += 1
