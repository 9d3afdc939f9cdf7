"""What is recorded in the ledger: what runs find and decide, calls and their outcomes, marks, purges."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from audiobatch.ledger import engine, statements
from audiobatch.ledger.reader import as_found, mark_rows
from audiobatch.ledger.rows import outcome_to_row, part_to_row, source_to_row
from audiobatch.ledger.statements import end_row, intent_row, time_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from audiobatch.ledger.database import Database
    from audiobatch.ledger.group_commit import Commit, GroupCommit, Guard, Write
    from audiobatch.ledger.reader import LedgerReader
    from audiobatch.ledger.rows import Attempt, AttemptEnd, PartOutcome
    from audiobatch.model import Outcome, Review, Source


class LedgerWriter:
    """Records what belongs together in one transaction.

    What a call leaves behind is a `Commit`, to be awaited, or waited for in a thread. All else blocks.
    """

    def __init__(
        self,
        database: Database,
        commits: GroupCommit,
        reader: LedgerReader,
        guard: Callable[[str], Guard | None],
    ) -> None:
        """Write to an opened database.

        Args:
            database: the ledger's.
            commits: the thread that writes.
            reader: of the same ledger.
            guard: returns this run's claim of an item, which its writes depend on.
        """
        self._database = database
        self._commits = commits
        self._reader = reader
        self._guard = guard

    # Calls.

    def record_intent(self, attempt: Attempt) -> Commit[None]:
        """Record that a call is about to be made.

        Raises:
            LeaseLost: another run has claimed the item since.
            StorageError: it is not on disk; do not send.
        """
        intent = (statements.ADD_INTENT, [intent_row(attempt)])
        return self._commits.write(intent, guard=self._guard(attempt.item_id))

    def record_end(self, end: AttemptEnd) -> Commit[None]:
        """Record that a call ended without deciding its item, which will be retried.

        The end that another run gave it meanwhile stays.
        """
        return self._commits.write((statements.END_OPEN, [end_row(end)]))

    def settle_end(self, end: AttemptEnd) -> None:
        """Record how a call ended whose run is gone, whatever end it was given."""
        self._commits.write((statements.END_ATTEMPT, [end_row(end)])).wait()

    def record_outcome(
        self, outcome: Outcome, end: AttemptEnd | None = None, *, superseded: Outcome | None = None
    ) -> Commit[None]:
        """Record the outcome of a turn, with the end of the call that decided it.

        Args:
            outcome: takes the turn's row.
            end: of the deciding call.
            superseded: the success that it replaces, which moves among the earlier versions.

        Raises:
            LeaseLost: another run has claimed the item since.
            StorageError: it is not on disk.
        """
        writes = _outcome_writes(outcome, end, superseded)
        return self._commits.write(*writes, guard=self._guard(outcome.item_id))

    def record_part(
        self, part: PartOutcome, end: AttemptEnd | None = None, outcome: Outcome | None = None
    ) -> Commit[None]:
        """Record the outcome of a part, with the end of its call.

        Args:
            part: takes the part's row.
            end: of its call.
            outcome: the whole turn's, with what the part changes in it.

        Raises:
            LeaseLost: another run has claimed the item since.
            StorageError: it is not on disk.
        """
        writes: list[Write] = []
        if end is not None:
            writes.append((statements.END_ATTEMPT, [end_row(end)]))
        writes.append((statements.PUT_PART, [part_to_row(part)]))
        if outcome is not None:
            writes.append((statements.PUT_OUTCOME, [outcome_to_row(outcome)]))
        return self._commits.write(*writes, guard=self._guard(part.outcome.item_id))

    def adopt(self, attempt: Attempt, end: AttemptEnd, outcome: Outcome) -> None:
        """Record a result that an earlier ledger of this output knew, with the call that brought it."""
        intent = (statements.ADD_INTENT, [intent_row(attempt)])
        self._commits.write(intent, *_outcome_writes(outcome, end, None)).wait()

    # Runs and their inputs.

    def begin_run(self, run_id: str, *, spec: str, settings_key: str, settings_value: str) -> None:
        """Record a run, and the settings that its results are made with."""
        run = {
            "run_id": run_id,
            "started_at": time_text(datetime.now(UTC)),
            "finished_at": None,
            "spec": spec,
            "settings_key": settings_key,
            "summary": None,
        }
        settings = {"key": settings_key, "value": settings_value}
        self._commits.write((statements.PUT_RUN, [run]), (statements.PUT_SETTINGS, [settings])).wait()

    def end_run(self, run_id: str, summary: str) -> None:
        """Record that a run has finished, with its summary as JSON."""
        end = {"which": run_id, "finished_at": time_text(datetime.now(UTC)), "summary": summary}
        self._commits.write((statements.END_RUN, [end])).wait()

    def put_sources(self, sources: Sequence[Source], queue_id: str) -> None:
        """Insert or refresh inputs; results that they have stay. Unchanged ones are only marked as seen.

        Args:
            sources: as they were found now.
            queue_id: of the queue that they are on; runs that share a ledger share its queue.
        """
        rows = [source_to_row(source, queue_id) for source in sources]
        stored = self._reader.item_rows([row["item_id"] for row in rows])
        changed, seen = [], []
        for row in rows:
            if stored.get(row["item_id"]) == as_found(row):
                seen.append({"which": row["item_id"], "run": queue_id})
            else:
                changed.append(row)
        self._commits.write((statements.PUT_ITEM, changed), (statements.SEE, seen)).wait()

    def mark_all_seen(self, queue_id: str) -> None:
        """Take every input of earlier runs as found for this queue: for inputs that come only once."""
        self._commits.write((statements.SEE_ALL, [{"run": queue_id}])).wait()

    def forget_missing_inputs(self, queue_id: str) -> None:
        """Delete inputs that were not found for this queue and never had a result."""
        if self._reader.has_missing(queue_id):
            self._commits.write((statements.FORGET_MISSING, [{"run": queue_id}])).wait()

    def accept_outcomes(self, accepted: Sequence[tuple[str, int, str]]) -> None:
        """Accept results as they are.

        Args:
            accepted: (item_id, turn, the fingerprint of the request that would be sent today).
        """
        rows = [
            {"which": item_id, "which_turn": turn, "kept_as": fingerprint}
            for item_id, turn, fingerprint in accepted
        ]
        self._commits.write((statements.KEEP_AS, rows)).wait()

    # Reviews, reports and notes.

    def put_reviews(self, reviews: Mapping[tuple[str, int], Review]) -> None:
        """Set marks on the current results of these turns; an empty one deletes the mark.

        A mark is of one version of a reply: when another takes its place, that one has none, and this stays
        with the version that it was made on.
        """
        put, dropped = mark_rows(self._reader.outcome, reviews)
        self._commits.write((statements.PUT_MARK, put), (statements.DROP_MARK, dropped)).wait()

    def mark_reports_current(self, layout: str) -> None:
        """Note that the reports show all that is recorded; the next change deletes this note in its commit.

        Args:
            layout: what decides how the reports look, beside the records.
        """
        note = {"key": statements.SHOWN_KEY, "value": layout}
        self._commits.write((statements.MARK_SHOWN, [note])).wait()

    def put_note(self, key: str, value: str) -> None:
        """Store a note, for `LedgerReader.note`."""
        self._commits.write((statements.PUT_NOTE, [{"key": key, "value": value}])).wait()

    # A purge.

    def purge_texts(self, item_ids: Sequence[str]) -> None:
        """Blank all that was said, asked and saved for these items; counts, costs, hashes and times stay."""
        rows = [{"which": item_id} for item_id in item_ids]
        self._commits.write(*((statement, rows) for statement in statements.PURGE)).wait()

    def shrink(self) -> None:
        """Leave no trace of blanked text in the database's file."""
        engine.shrink(self._database.engine)


def _outcome_writes(outcome: Outcome, end: AttemptEnd | None, superseded: Outcome | None) -> list[Write]:
    writes: list[Write] = []
    if end is not None:
        writes.append((statements.END_ATTEMPT, [end_row(end)]))
    if superseded is not None:
        writes.append((statements.KEEP_VERSION, [outcome_to_row(superseded)]))
    writes.append((statements.PUT_OUTCOME, [outcome_to_row(outcome)]))
    return writes
