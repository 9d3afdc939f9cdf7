"""Fences: whether a writer's claim of an item still holds, looked up in the transaction that writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sqlalchemy import select

from audiobatch.ledger.schema import queue

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy import Connection


def refused(connection: Connection, guards: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
    """Which of these claims no longer hold. The others hold until the transaction ends."""
    asked = set(guards)
    # In one order for all: two that lock the same rows never wait for each other.
    query = (
        select(queue.c.item_id, queue.c.fence)
        .where(queue.c.item_id.in_([item_id for item_id, _ in asked]))
        .order_by(queue.c.item_id)
        .with_for_update(read=True)
    )
    return asked - {(item_id, fence) for item_id, fence in connection.execute(query)}
