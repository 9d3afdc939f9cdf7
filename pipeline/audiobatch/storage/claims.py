"""Who has which output name: for the few names that two items could both ask for.

Names made from item_ids are apart by themselves, but for `x` and `x.wav`; a table's `filename`s can be anything.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from audiobatch.storage.names import OUTPUT_ENDINGS, collision_key, stem_of

if TYPE_CHECKING:
    from pathlib import PurePosixPath


class Claims:
    """The names given out so far, first come, first served."""

    def __init__(self) -> None:
        self._holders: dict[str, str] = {}

    def claim(self, item_id: str, filename: str | None = None) -> str | None:
        """Takes the item's output name; None when it is now the item's, else the item_id that has it.

        A refused item takes nothing. An item may claim its own name again.

        Raises:
            InputError: `filename` would not work on every system.
        """
        stem = stem_of(item_id, filename)
        for key in _rivals(stem):
            if (holder := self._holders.get(key, item_id)) != item_id:
                return holder
        self._holders[collision_key(str(stem))] = item_id
        return None


def _rivals(stem: PurePosixPath) -> list[str]:
    """Every name that becomes the same file once an ending is added, this one first."""
    key = collision_key(str(stem))
    rivals = [key, *(key + ending for ending in OUTPUT_ENDINGS)]
    if stem.suffix.lower() in OUTPUT_ENDINGS:
        rivals.append(key.removesuffix(stem.suffix.lower()))
    return rivals
