"""The command line's flags for a job, made from `JobSpec`: one schema, so a new field is a new flag."""

from __future__ import annotations

import types
import typing
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from audiobatch.config.jobspec import DEFAULT_LUFS, DEFAULT_TRANSCRIPTION_MODEL, JobSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from audiobatch.config.settings import Resolved

#: Fields that are no flag: the arguments, and what only a job file can say.
_NO_FLAG = ("inputs", "turns", "deployments")
#: Flags that are shorter than their field, or have a second name.
_FLAGS = {
    "max_completion_tokens": ("--max-tokens", "--max-completion-tokens"),
    "timeout_s": ("--timeout",),
    "fade_s": ("--fade",),
    "drain_timeout_s": ("--drain-timeout",),
    "lease_s": ("--lease",),
}
#: What flags take that are several values in one.
_LISTS = {"modalities": "text|text,audio", "reports": "xlsx,html,jsonl,parquet", "fields": "FILE"}
#: Flags whose value may be left out, with what they then mean and what the value is.
_BARE: dict[str, tuple[Any, str]] = {
    "normalize": (DEFAULT_LUFS, "LUFS"),
    "verify_speech": (DEFAULT_TRANSCRIPTION_MODEL, "MODEL"),
}
#: The sections of `--help`, so that seventy flags can be read; what is in none goes under the last.
SECTIONS: dict[str, tuple[str, ...]] = {
    "Where calls go": (
        *("provider", "endpoint", "api_version", "deployment", "model", "auth", "timeout_s", "max_reply_mb"),
        "prices",
    ),
    "What is asked": (
        *("prompt", "system", "read_aloud", "modalities", "temperature", "seed", "max_completion_tokens"),
        *("fields", "one_prompt_per_line"),
    ),
    "Recordings": (
        *("include", "exclude", "send_silent", "channels", "trim_silence", "max_part", "transcribe_inputs"),
    ),
    "Replies": (
        *("voice", "format", "normalize", "trim_reply_silence", "fade_s", "on_check", "verify_speech"),
        *("retry_text_only",),
    ),
    "Realtime and streaming": (
        *("transport", "stream", "transcription_model", "vad", "vad_threshold"),
        *("vad_prefix_padding_ms", "vad_silence_ms"),
    ),
    "How much, how fast, at what cost": (
        *("limit", "stop_at", "max_failures", "max_concurrency", "rpm", "tpm", "max_cost"),
        *("max_total_cost", "wait"),
    ),
    "Running again": ("redo", "keep", "force", "on_unknown", "adopt"),
    "Results": ("output", "manifest_columns", "reports"),
    "Several machines": ("ledger", "lease_s", "workers", "work_pool", "dask"),
}
_LAST_SECTION = "This command"


class JobCommand(click.Command):
    """A command with a job's flags, listed by what they are about."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse arguments; where a flag's value may be left out, one that is given follows after `=`."""
        end = args.index("--") if "--" in args else len(args)
        bare = {flag: f"{flag}={value}" for name, (value, _) in _BARE.items() for flag in flags_of(name)}
        return super().parse_args(ctx, [bare.get(argument, argument) for argument in args[:end]] + args[end:])

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options in groups."""
        of_field = {field: section for section, fields in SECTIONS.items() for field in fields}
        found: dict[str, list[tuple[str, str]]] = {section: [] for section in (*SECTIONS, _LAST_SECTION)}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
                found[of_field.get(parameter.name or "", _LAST_SECTION)].append(record)
        for section, records in found.items():
            if records:
                with formatter.section(section):
                    formatter.write_dl(records)


class _WithOrWithout(click.Option):
    """A flag whose value may be left out."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        record = super().get_help_record(ctx)
        return record and (f"{self.opts[0]}[={self.metavar}]", record[1])


def flags_of(field: str) -> tuple[str, ...]:
    """Return the flags of a JobSpec field: `max_concurrency` → `--max-concurrency`."""
    return _FLAGS.get(field, ("--" + field.replace("_", "-"),))


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the arguments INPUT…, `--job`, and a flag for each field of a job."""
    for name, field in reversed(JobSpec.model_fields.items()):
        if name in _NO_FLAG:
            continue
        command = click.option(
            *flags_of(name),
            name,
            default=None,
            help=_help(name),
            **_kind(name, field.annotation, field.metadata)
            | ({"cls": _WithOrWithout, "metavar": _BARE[name][1]} if name in _BARE else {}),
        )(command)
    command = click.option(
        "--job",
        "job_file",
        type=click.Path(path_type=Path),
        help="Job file (TOML) for all that flags can say.",
    )(command)
    return click.argument("inputs", nargs=-1, metavar="[INPUT]…")(command)


def workers_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the flags that say who sends."""
    for option in (
        click.option(
            "--dask", metavar="ADDRESS", help="Workers are tasks on this Dask cluster: tcp://HOST:8786."
        ),
        click.option("--work-pool", metavar="NAME", help="Workers are flow runs on this Prefect work pool."),
        click.option(
            "--workers",
            type=click.IntRange(1, 1000),
            metavar="N",
            help="Have N workers send; by default processes of this machine. Needs a PostgreSQL ledger.",
        ),
    ):
        command = option(command)
    return command


def resolve_job(inputs: tuple[str, ...], job_file: Path | None, flags: dict[str, Any]) -> Resolved:
    """Return the effective job of a command line.

    Raises:
        ConfigError: naming the flag, file or variable, and what is allowed.
    """
    from audiobatch.config import settings

    return settings.resolve({"inputs": inputs, **flags}, job_file=job_file)


def _help(name: str) -> str:
    field = JobSpec.model_fields[name]
    text = field.description or ""
    shown = field.default
    if shown in (None, (), False):
        return f"{text}."
    if isinstance(shown, tuple):
        shown = ",".join(shown)
    return f"{text}. [default: {shown}]"


def _kind(name: str, annotation: Any, metadata: list[Any]) -> dict[str, Any]:
    """Return click's type and options for a field's type."""
    options = [option for option in typing.get_args(annotation) if option is not types.NoneType]
    if annotation is bool:
        return {"is_flag": True, "flag_value": True, "type": bool}
    if typing.get_origin(annotation) is Literal:
        return {"type": click.Choice(typing.get_args(annotation))}
    if typing.get_origin(annotation) in {typing.Union, types.UnionType} and len(options) == 1:
        return _kind(name, options[0], metadata)
    if annotation is int or annotation is float:
        return {"type": annotation, "metavar": "N"}
    if annotation is Decimal:
        return {"metavar": "USD"}
    if typing.get_origin(annotation) is tuple:
        if typing.get_args(annotation)[0] is str:
            return {"multiple": True, "metavar": "TEXT"}
        return {"metavar": _LISTS[name]}
    return {"metavar": "TEXT"}
