"""What becomes of the calls below an item's turn: the parts of a long recording, and words that are written down.

Each is recorded when its reply is on disk, so that none is paid for again when the run ends before the others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import orjson

from audiobatch.ledger.rows import outcome_from_row, outcome_to_row
from audiobatch.model import Cue, PartKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sqlalchemy import RowMapping

    from audiobatch.model import Outcome

#: The transport of calls that write words down: the manifest's rows are not made of them.
TRANSCRIPTION = "transcription"


@dataclass(frozen=True, slots=True, kw_only=True)
class PartOutcome:
    """What became of one part.

    Attributes:
        part: 1 for the first; 0 is the whole, put together, of words that are written down.
        start_s, end_s: where it lies in the recording: a recorded part stands for that stretch and no other.
        cues: the words with their times in the recording, where the service gives any.
        outcome: of this call; its item, turn and version are those of the whole.
    """

    kind: PartKind
    part: int
    start_s: float
    end_s: float
    outcome: Outcome
    cues: tuple[Cue, ...] = ()

    def is_of(self, fingerprint: str, start_s: float, end_s: float) -> bool:
        """Whether it answers the same question about the same stretch, to the hundredth of a second."""
        same = abs(self.start_s - start_s) < 0.01 and abs(self.end_s - end_s) < 0.01
        return same and self.outcome.fingerprint == fingerprint


def part_to_row(part: PartOutcome) -> dict[str, Any]:
    return outcome_to_row(part.outcome) | {
        "kind": part.kind.value,
        "part": part.part,
        "start_s": part.start_s,
        "end_s": part.end_s,
        "cues": orjson.dumps(cues_to_json(part.cues)).decode() if part.cues else "",
    }


def part_from_row(row: RowMapping | Mapping[str, Any]) -> PartOutcome:
    return PartOutcome(
        kind=PartKind(row["kind"]),
        part=row["part"],
        start_s=row["start_s"],
        end_s=row["end_s"],
        outcome=outcome_from_row(row),
        cues=cues_from_json(orjson.loads(row["cues"])) if row["cues"] else (),
    )


def cues_to_json(cues: Iterable[Cue]) -> list[list[Any]]:
    return [[cue.start_s, cue.end_s, cue.text] for cue in cues]


def cues_from_json(found: Iterable[Sequence[Any]]) -> tuple[Cue, ...]:
    return tuple(Cue(start_s=start_s, end_s=end_s, text=text) for start_s, end_s, text in found)
