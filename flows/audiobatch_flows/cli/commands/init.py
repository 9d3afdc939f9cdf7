"""`audiobatch init`: a commented job file to start from."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import click

_HEAD = """\
# A job for audiobatch:  audiobatch run --job {name}
# Most keys are flags, too; a flag given on the command line wins. Paths are relative to this file.
# Credentials never stand here: they come from the environment (AZURE_OPENAI_API_KEY, OPENAI_API_KEY) or `az login`.
"""
_TURNS = """\
# Several turns: give a list of prompts above, or say each turn apart. A follow-up's default is text alone.
# [[turns]]
# prompt = "Describe in detail the spoken audio input."
# modalities = ["text", "audio"]
# [[turns]]
# prompt = "Summarise your answer in one sentence."

# Several deployments: lower priorities go first, the others take what those have no room for. What an entry
# leaves out is the job's; a key stands in the environment, in the variable that is named here.
# [[deployments]]
# deployment = "gpt-audio-provisioned"
# max_concurrency = 20
# [[deployments]]
# deployment = "gpt-audio"
# endpoint = "https://<resource>.openai.azure.com"
# key_variable = "AZURE_OPENAI_API_KEY_WEST"
# rpm = 600
# priority = 1
# price = {text_in = 2.5, text_out = 10, audio_in = 32, audio_out = 64}
"""
_START = {
    "inputs": ["recordings"],
    "provider": "local",
    "prompt": ["Describe in detail the spoken audio input."],
}


@click.command(short_help="Write a commented job file to start from.")
@click.argument("path", default="job.toml", type=click.Path(path_type=Path))
@click.option("--force", is_flag=True, help="Replace a file that is there.")
def init(path: Path, *, force: bool) -> int:
    """Write a commented job file to PATH (job.toml): every setting, what it means, and its default."""
    from audiobatch.errors import ConfigError

    if path.exists() and not force:
        raise ConfigError(f"{path}: is there already; --force replaces it")
    try:
        path.write_text(job_file_text(path.name), encoding="utf-8")
    except OSError as failed:
        raise ConfigError(f"{path}: cannot be written ({failed.strerror})") from failed
    click.echo(str(path))
    return 0


def job_file_text(name: str) -> str:
    """Return the file's text: valid as it is, with every key that JobSpec has."""
    from audiobatch.config.jobspec import JobSpec

    parts = [_HEAD.format(name=name)]
    for key, field in JobSpec.model_fields.items():
        if key in ("turns", "deployments"):
            continue
        comment = textwrap.fill(field.description or key, 100, initial_indent="# ", subsequent_indent="# ")
        value = _START.get(key, field.default)
        line = f"{key} = {_toml(value)}" if key in _START else f"# {key} = {_toml(value)}"
        parts.append(f"{comment}\n{line}\n")
    return "\n".join([*parts, _TURNS])


def _toml(value: Any) -> str:
    """Return a TOML literal; an empty string stands for a key that has no default."""
    match value:
        case bool():
            return str(value).lower()
        case None:
            return '""'
        case tuple() | list():
            return "[" + ", ".join(_toml(element) for element in value) + "]"
        case int() | float():
            return repr(value)
        case _:
            return json.dumps(value, ensure_ascii=False)
