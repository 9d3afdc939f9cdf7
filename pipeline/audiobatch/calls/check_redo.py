"""Replies with a flaw that the job does not want are asked for again: `--on-check CHECK=redo[:N]`.

The flawed reply is recorded first, as any other. What is asked for again takes its place only when it is there;
until then, and if it never comes, the first one stands. What is flawed once more stands when N calls were made.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from audiobatch.config.jobspec import check_action
from audiobatch.model import Status

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from audiobatch.config.jobspec import JobSpec
    from audiobatch.model import Check, Outcome

log = logging.getLogger(__name__)


def redos(spec: JobSpec) -> dict[Check, int]:
    """How often a reply with each flaw is asked for again; a check named twice goes by the last word."""
    return {check: times for check, times in map(check_action, spec.on_check) if times}


async def asked_again(
    spec: JobSpec, ask: Callable[[Outcome | None], Awaitable[Outcome]], outcome: Outcome
) -> Outcome:
    """The outcome, or that of a call that was made again for its flaws.

    Args:
        spec: says which flaws, and how often.
        ask: makes one more call; is given the outcome that stands until it has another.
        outcome: of the first call.
    """
    wanted = redos(spec)
    made = 0
    while outcome.status is Status.SUCCEEDED:
        most = max((wanted.get(check, 0) for check in outcome.checks), default=0)
        if made >= most:
            break
        made += 1
        flaws = " ".join(check for check in outcome.checks if check in wanted)
        log.info("%s turn %d: %s: asked again, %d of %d", outcome.item_id, outcome.turn, flaws, made, most)
        again = await ask(outcome)
        if again.status is not Status.SUCCEEDED or again == outcome:
            break
        outcome = again
    return outcome
