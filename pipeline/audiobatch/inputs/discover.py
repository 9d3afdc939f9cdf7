"""Find a job's inputs and turn them into Sources: walk folders, probe files, read tables; all streamed.

The README says what an id is: the path relative to its root (with the root's name in front where there are
several), a table's `id`, or a hash of the prompt. It is never a row number, so that an inserted input shifts no
other.
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

from audiobatch.address import Address, is_remote, parse_location
from audiobatch.audio.probe import looks_like_audio, probe_many
from audiobatch.config.jobspec import placeholders
from audiobatch.errors import ConfigError, InputError, NothingFound, shown
from audiobatch.inputs.recording_files import (
    DiscoveryStats,
    RecordingFile,
    if_unchanged,
    probed_source,
    readable_name,
    source_without_probing,
)
from audiobatch.inputs.sound_settings import SIDE_SUFFIXES
from audiobatch.inputs.table_bounds import lines_within
from audiobatch.inputs.tables import (
    TABLE_ENDINGS,
    ItemIds,
    PromptTable,
    lines_of,
    read_text_file,
    text_source,
)
from audiobatch.storage.names import Claims
from audiobatch.storage.output import JOB_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from audiobatch.address import Location
    from audiobatch.config.jobspec import JobSpec
    from audiobatch.inputs.recording_files import KnownFile
    from audiobatch.inputs.remote import RemoteDiscovery
    from audiobatch.model import Source


@dataclass(slots=True)
class Discovery:
    """One pass over a job's inputs.

    Attributes:
        known: files that the ledger has, by item id; unchanged ones are not read again.
        stdin: the stream that `-` names.
        is_arriving: whether a file is still being written and is left for a later run; None: take all files.
        stats: counts of what was seen.
    """

    spec: JobSpec
    known: Mapping[str, KnownFile] = field(default_factory=dict)
    stdin: IO[bytes] | None = None
    is_arriving: Callable[[Path], bool] | None = None
    stats: DiscoveryStats = field(default_factory=DiscoveryStats)
    _ids: ItemIds = field(default_factory=ItemIds)
    _in_stores: RemoteDiscovery | None = None

    def sources(self) -> Iterator[Source]:
        """Yield every input, in order, numbered by position.

        Raises:
            ConfigError: a named input does not exist or is not an input.
            NothingFound: there are no inputs.
        """
        position = 0
        # Names made from paths differ by themselves; a table's ids and file names can be anything.
        claims = Claims() if any(map(_is_table, self.spec.inputs)) else None
        for source in self._split_sides(self._all_sources()):
            position += 1
            refusal = source.refusal or (_name_taken(source, claims) if claims else "")
            yield replace(source, position=position, refusal=refusal)
        if position == 0:
            raise NothingFound(self._why_nothing())

    def files(self) -> Iterator[Path]:
        """Yield the files that `sources` would read, without reading them; missing ones are left out."""
        for given in self.spec.inputs:
            path = _location(given)
            assert isinstance(path, Path)  # a store is not watched
            if path.is_dir():
                root = path.resolve()
                for file in _walk(str(root), DiscoveryStats()):
                    is_input = looks_like_audio(file.name) or _is_text(file.name)
                    if is_input and self._wanted(file.relative):
                        yield Path(file.full_path)
            elif path.exists():
                yield path.resolve()

    def _split_sides(self, sources: Iterable[Source]) -> Iterator[Source]:
        """With `--channels split`, make two items of a stereo recording."""
        for source in sources:
            if self.spec.channels == "split" and source.media is not None and source.media.channels == 2:
                for suffix in SIDE_SUFFIXES:
                    yield replace(source, item_id=self._ids.unique(source.item_id + suffix))
            else:
                yield source

    def _all_sources(self) -> Iterator[Source]:
        roots = self._roots()
        if not self.spec.inputs:
            raise ConfigError(
                "no input given: name a folder, a file, or '-' for JSON Lines on standard input"
            )
        # Neighbouring inputs of one kind go together, so that the workers that probe them start once.
        for remote, given in groupby(self.spec.inputs, key=is_remote):
            if remote:
                yield from self._remote.sources(self._remote_inputs(given, roots))
            else:
                yield from self._probed(self._local(given, roots))

    def _local(
        self, inputs: Iterable[str], roots: Mapping[Location, str]
    ) -> Iterator[Source | RecordingFile]:
        for given in inputs:
            if given == "-":
                yield from self._table("-", "").from_stream(self._stdin_lines())
                continue
            path = _location(given)
            assert isinstance(path, Path)
            if path.is_dir():
                yield from self._folder(path, roots.get(path.resolve(), ""))
            elif self.is_arriving is None or not self.is_arriving(path.resolve()):
                yield from self._file(path, roots.get(path.resolve().parent, ""))

    def _remote_inputs(
        self, inputs: Iterable[str], roots: Mapping[Location, str]
    ) -> Iterator[tuple[Address, str]]:
        for given in inputs:
            address = _location(given)
            assert isinstance(address, Address)
            root = address if self._remote.is_folder(address) else address.parent
            yield address, roots.get(root, "")

    @property
    def _remote(self) -> RemoteDiscovery:
        """Created when needed, since local inputs need no client of a store."""
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
            raise ConfigError("'-' reads JSON Lines from standard input, which is not available here")
        return lines_within(self.stdin, "standard input")

    def _roots(self) -> dict[Location, str]:
        """Return each root with the prefix of its ids: none for a single root, its name among several."""
        roots: dict[Location, None] = {}
        earlier: dict[Location, str] = {}
        for given in self.spec.inputs:
            if given == "-":
                continue
            location = _location(given)
            if isinstance(location, Address):
                is_folder = self._remote.is_folder(location)
            elif location.exists():
                is_folder = location.is_dir()
                location = location.resolve()
            else:
                raise ConfigError(f"{shown(given)}: there is no such file or folder")
            for other, name in earlier.items():
                if _is_within(location, other) or _is_within(other, location):
                    part, whole = (given, name) if _is_within(location, other) else (name, given)
                    raise ConfigError(f"{part}: is already part of {whole}; give each input once")
            earlier[location] = given
            roots[location if is_folder else location.parent] = None
        if len(roots) < 2:
            return dict.fromkeys(roots, "")
        names: dict[str, Location] = {}
        for root in roots:
            if root.name in names:
                raise ConfigError(
                    f"two inputs are called {root.name!r} ({names[root.name]} and {root}), so their ids would "
                    "clash; run them separately, each with an --output"
                )
            names[root.name] = root
        return {root: f"{root.name}/" for root in roots}

    def _table(self, name: str, root: str) -> PromptTable:
        first, *others = (bool(placeholders(turn.prompt)) for turn in self.spec.turn_specs())
        return PromptTable(
            name=name,
            root=root,
            ids=self._ids,
            needs_prompt=not first,
            fills_prompts=first or any(others),
        )

    def _file(self, path: Path, prefix: str) -> Iterator[Source | RecordingFile]:
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
                f"{shown(path)}: is not an input. Inputs are folders, recordings (.wav, .mp3, …), .txt "
                f"prompts, and tables ({' '.join(TABLE_ENDINGS)})"
            )

    def _folder(self, folder: Path, prefix: str) -> Iterator[Source | RecordingFile]:
        """Yield recordings if there are any, else .txt prompts; beside recordings, a .txt file is a note."""
        if (folder / JOB_FILE).exists():
            raise ConfigError(f"{folder}: is an output folder of audiobatch, not an input")
        root = str(folder.resolve())
        has_recordings = any(
            looks_like_audio(file.name) and self._wanted(file.relative)
            for file in _walk(root, DiscoveryStats())
        )
        for file in _walk(root, self.stats):
            if not self._wanted(file.relative):
                self.stats.left_out += 1
                continue
            if self.is_arriving is not None and self.is_arriving(Path(file.full_path)):
                continue
            item_id = prefix + file.relative
            if has_recordings and looks_like_audio(file.name):
                yield self._recording(file, root, item_id)
            elif not has_recordings and _is_text(file.name):
                path = Path(file.full_path)
                if self.spec.one_prompt_per_line:
                    yield from lines_of(path, root=root, ids=self._ids)
                else:
                    yield self._prompt_file(path, root, item_id, file.relative)
            else:
                self.stats.other_files += 1

    def _wanted(self, relative: PurePath | str) -> bool:
        """Whether `include` and `exclude` accept a file of a folder, by its path or its name alone."""
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

    def _recording(self, file: _File, root: str, item_id: str) -> RecordingFile:
        name, problem = readable_name(item_id)
        return RecordingFile(
            item_id=self._ids.unique(name),
            root=root,
            path=readable_name(file.relative)[0],
            full_path=file.full_path,
            size_bytes=file.size_bytes,
            mtime_ns=file.mtime_ns,
            refusal=problem or file.problem,
        )

    def _probed(self, found: Iterator[Source | RecordingFile]) -> Iterator[Source]:
        """Probe recordings on all cores, a few ahead of the reader; yield all sources in order."""
        waiting: deque[Source | RecordingFile] = deque()

        def to_probe() -> Iterator[Path]:
            for file in found:
                waiting.append(file)
                if not isinstance(file, RecordingFile) or file.refusal:
                    continue
                if if_unchanged(file, self.known) is None:
                    self.stats.probed += 1
                    yield Path(file.full_path)

        results = probe_many(to_probe())
        for path, result in results:
            while not (isinstance(waiting[0], RecordingFile) and waiting[0].full_path == str(path)):
                yield self._unprobed_source(waiting.popleft())
            probed = waiting.popleft()
            assert isinstance(probed, RecordingFile)
            yield probed_source(probed, result)
        while waiting:
            yield self._unprobed_source(waiting.popleft())

    def _unprobed_source(self, file: Source | RecordingFile) -> Source:
        return source_without_probing(file, self.known) if isinstance(file, RecordingFile) else file

    def _why_nothing(self) -> str:
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


def _location(given: str) -> Location:
    try:
        return parse_location(given)
    except ValueError as refused:
        raise ConfigError(str(refused)) from None


def _is_within(inner: Location, outer: Location) -> bool:
    if isinstance(inner, Path) and isinstance(outer, Path):
        return inner.is_relative_to(outer)
    return isinstance(inner, Address) and isinstance(outer, Address) and inner.is_within(outer)


def _name_taken(source: Source, claims: Claims) -> str:
    """Say why a source cannot have the output name that it asks for; empty when it can."""
    try:
        holder = claims.claim(source.item_id, source.settings.filename)
    except InputError as refused:
        return refused.message
    return f"its output would have the same name as that of {holder!r}" if holder else ""


class _File(NamedTuple):
    """A file on disk; texts and numbers alone, since there may be a million."""

    name: str
    relative: str
    full_path: str
    size_bytes: int = 0
    mtime_ns: int = 0
    problem: str = ""


def _file_of(path: Path, relative: str) -> _File:
    try:
        status = path.stat()
    except OSError as failed:
        return _File(path.name, relative, str(path), problem=f"it cannot be read: {failed.strerror}")
    return _File(path.name, relative, str(path), status.st_size, status.st_mtime_ns)


def _is_text(name: str) -> bool:
    return name.lower().endswith(".txt")


def _walk(folder: str, stats: DiscoveryStats, below: str = "") -> Iterator[_File]:
    """Yield files below a folder, depth first, sorted by name, without hidden files, links and output folders."""
    try:
        with os.scandir(folder) as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
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
            status = entry.stat(follow_symlinks=False)
        except OSError:
            yield _file_of(Path(entry.path), relative)
            continue
        if stat.S_ISREG(status.st_mode):
            yield _File(name, relative, entry.path, status.st_size, status.st_mtime_ns)
        elif stat.S_ISDIR(status.st_mode):
            yield from _walk(entry.path, stats, relative + "/")
        elif stat.S_ISLNK(status.st_mode):
            stats.skipped_links += 1
        else:
            stats.other_files += 1
