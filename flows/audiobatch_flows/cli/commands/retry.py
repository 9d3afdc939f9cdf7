"""`audiobatch retry DIR`: send again what a run leaves alone, and what a reviewer marked."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from audiobatch_flows.cli.commands.folders import folder_argument, spec_of

if TYPE_CHECKING:
    from audiobatch.address import Location

#: Of one run alone: what was asked of the last one is not asked again.
_ONE_RUN_ONLY: dict[str, object] = {
    "limit": None,
    "stop_at": None,
    "force": False,
    "adopt": False,
}
#: A redo is gone on with, for its own calls may have failed; but marks choose alone.
_NOT_WITH_MARKS: dict[str, object] = {"redo": False, "keep": False}


@click.command(short_help="Send again what failed for good, or has an unknown end.")
@folder_argument
@click.option(
    "--status",
    "statuses",
    multiple=True,
    type=click.Choice(["failed", "unknown"]),
    help="Only rows of this status; again for more. [default: both]",
)
@click.option(
    "--error",
    "errors",
    multiple=True,
    metavar="TYPE",
    help="Only rows with this error_type, as the manifest has it (bad_reply, content_filter, …); again for more.",
)
@click.option(
    "--review",
    "reviews",
    multiple=True,
    type=click.Choice(["redo", "reject", "ok"]),
    help="Only rows with this mark, and all of them: `--review redo` makes again what a reviewer marked.",
)
@click.option(
    "--with-notes", is_flag=True, help="With --review: add each row's review_note to its instructions."
)
@click.option("--force", is_flag=True, help="With --review ok: approved results may be replaced.")
@click.option("--no-prefect", is_flag=True, help="Run the engine without Prefect.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object, last on stdout.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no table.")
def retry(  # noqa: PLR0913 - an argument for each option
    folder: Location,
    *,
    statuses: tuple[str, ...],
    errors: tuple[str, ...],
    reviews: tuple[str, ...],
    with_notes: bool,
    force: bool,
    no_prefect: bool,
    as_json: bool,
    quiet: bool,
) -> int:
    """Send rows of DIR again that failed for good (rejected, content_filter, bad_reply) or whose end is unknown.

    The job is the one that DIR was last run with. Each row may be paid for again; results that are there are not
    sent. What failed for a reason that may pass is sent by `run` as well.

    With --review, just the rows so marked (`audiobatch review DIR --apply FILE`) are made again; the earlier
    replies are kept under versions/.
    """
    from audiobatch.errors import ConfigError, ErrorType
    from audiobatch.model import Status
    from audiobatch.planning.plan import Retry
    from audiobatch_flows.cli.commands.run import run_to_end, start_server

    known = {error_type.value for error_type in ErrorType}
    for name in errors:
        if name not in known:
            raise ConfigError(
                f"--error {name!r}: there is no such error_type; known: {', '.join(sorted(known))}"
            )
    if reviews and (statuses or errors):
        raise ConfigError("--review chooses by mark alone; leave out --status and --error")
    if with_notes and not reviews:
        raise ConfigError("--with-notes goes with --review redo")
    if "ok" in reviews and not force:
        raise ConfigError("approved results are not replaced; add --force to do it all the same")
    wanted = Retry(
        statuses=frozenset(map(Status, statuses)) or Retry().statuses,
        error_types=frozenset(map(ErrorType, errors)) or None,
        reviews=frozenset(reviews),
        with_notes=with_notes,
    )
    update = _ONE_RUN_ONLY | (_NOT_WITH_MARKS if reviews else {}) | {"force": force}
    spec = spec_of(folder, sends=True).model_copy(update=update)
    server = None if no_prefect else start_server()
    return run_to_end(spec, server=server, prefect=not no_prefect, as_json=as_json, quiet=quiet, retry=wanted)
