"""`audiobatch config show`: every setting with where it comes from; secrets masked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from audiobatch_flows.cli.options import JobCommand, job_options, resolve_job

if TYPE_CHECKING:
    from pathlib import Path


@click.group(short_help="Show where each setting comes from.")
def config() -> None:
    """Look at the settings that a run would have."""


@config.command(cls=JobCommand, short_help="Each setting, its value, and where it comes from.")
@job_options
def show(inputs: tuple[str, ...], job_file: Path | None, **flags: Any) -> int:
    """Show each setting that `run` would have with the same arguments, and where it comes from."""
    from audiobatch.config import settings
    from audiobatch.errors import ConfigError

    resolved = resolve_job(inputs, job_file, flags)
    for name, origin in resolved.origins.items():
        value = getattr(resolved.spec, name)
        shown = "-" if value is None or value in ((), "") else value
        click.echo(f"{name:<22} {_plain(shown):<40} {origin}")
    try:
        used = settings.credential(resolved.spec)
    except ConfigError as failed:
        click.echo(f"{'credential':<22} none: {failed.message.splitlines()[0]}")
        return 0
    if resolved.spec.provider == "local":
        click.echo(f"{'credential':<22} the emulator's own")
    elif used.key:
        click.echo(f"{'credential':<22} {'key, ends in …' + used.key[-4:]:<40} {used.origin}")
    else:
        click.echo(f"{'credential':<22} {'Microsoft Entra ID':<40} {used.origin}")
    return 0


def _plain(value: Any) -> str:
    return ", ".join(map(_plain, value)) if isinstance(value, tuple) else str(value)
