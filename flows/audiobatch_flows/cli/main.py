"""`audiobatch …`: find the command, run it, turn errors into one clear message and an exit code.

Commands are imported when they are called: `--help` costs no more than click itself.
"""

from __future__ import annotations

import errno
import importlib
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from audiobatch.errors import ExitCode
from audiobatch_flows.cli.proxies import spare_this_machine

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Command → its line in `--help`.
COMMANDS = {
    "run": "Send a folder of recordings or prompts, save what comes back.",
    "plan": "What a run would send, take and cost. Sends nothing.",
    "doctor": "Check credentials, endpoint, codecs, output and Prefect.",
    "init": "Write a commented job file to start from.",
    "status": "What a folder holds: done, failed, pending, spent.",
    "retry": "Send again what failed for good, or has an unknown end.",
    "verify": "Check that every result is there and is what was recorded.",
    "purge": "Take out sound, transcripts and texts; keep counts and costs.",
    "review": "Take in a reviewer's marks; hand out the approved clips.",
    "report": "Make the manifest, the workbook and the page again.",
    "schedule": "Run a job again and again, at times you name.",
    "serve": "Run scheduled jobs when they are due, until Ctrl-C.",
    "server": "Start Prefect's server: pages, schedules, notifications.",
    "config": "Show where each setting comes from.",
    "emulator": "Run the local stand-in for the service.",
}
#: Those that are not in a module of their own name here.
_ELSEWHERE = {"emulator": "audiobatch_emulator.command"}


class _Commands(click.Group):
    """A group that knows its commands' names and first lines without importing them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = _ELSEWHERE.get(cmd_name, f"audiobatch_flows.cli.commands.{cmd_name}")
        command: click.Command = getattr(importlib.import_module(module), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else f" Commands: {', '.join(COMMANDS)}."
            ctx.fail(f"there is no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(package_name="audiobatch", prog_name="audiobatch")
def cli() -> None:
    """Folders of recordings or text prompts in; spoken replies, transcripts and a manifest out.

    \b
    Try it without an account:
      audiobatch run sample_inputs/recordings --provider local
    """  # noqa: D301 - click's mark for lines as they are


#: What this machine is out of: no fault of the program's, and nothing that a traceback explains.
_REFUSED = {errno.EMFILE, errno.ENFILE, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENOMEM}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the program. Never returns: it ends the process with the exit code that the README lists."""
    spare_this_machine()
    try:
        code = cli.main(args=arguments, standalone_mode=False)
    except click.ClickException as failed:
        failed.show()
        code = ExitCode.USAGE
    except click.Abort:
        click.echo("audiobatch: interrupted", err=True)
        code = ExitCode.SIGINT
    except Exception as failed:  # noqa: BLE001 - the last stop: every error becomes a message and a code
        code = _explain(failed)
    sys.exit(code if isinstance(code, int) else 0)


def _explain(failed: Exception) -> ExitCode:
    from audiobatch.errors import (
        AudioBatchError,
        ConfigError,
        DeploymentFatal,
        InputError,
        StorageError,
    )

    if isinstance(failed, OSError) and failed.errno in _REFUSED:
        reason = f"the system refused it: {failed}. Nothing that was recorded is lost; run again"
        click.echo(f"audiobatch: {reason}", err=True)
        return ExitCode.USAGE
    if not isinstance(failed, AudioBatchError):
        import traceback

        traceback.print_exception(failed)
        click.echo(f"audiobatch: internal error: {failed!r}. Nothing that was recorded is lost.", err=True)
        return ExitCode.INTERNAL
    click.echo(f"audiobatch: {failed.message}", err=True)
    if isinstance(failed, DeploymentFatal):
        return ExitCode.NO_DEPLOYMENT
    expected = isinstance(failed, (ConfigError, InputError, StorageError))
    return ExitCode.USAGE if expected else ExitCode.INTERNAL
