"""Build an Item from a Source: fill templates, put row settings over job settings, compute fingerprints.

A fingerprint identifies the request that a reply was paid for. It contains everything that decides the reply and
nothing else: no deployment, endpoint, transport or prepared bytes, so that another region or a new codec version
sends nothing again. Audio settings at their defaults are left out, so that options that are added later change no
old fingerprint.
"""

from __future__ import annotations

import hashlib
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import orjson

from audiobatch.answer_schema import answer_fields
from audiobatch.config.jobspec import fill, placeholders
from audiobatch.errors import InputError
from audiobatch.inputs.sound_settings import finish_settings, preparation_of, sound_settings
from audiobatch.model import Item, SourceKind, Turn

if TYPE_CHECKING:
    from audiobatch.config.jobspec import JobSpec, TurnSpec
    from audiobatch.model import Source

FINGERPRINT_VERSION = 1

#: What `--read-aloud` adds before the job's own system prompt.
READ_ALOUD = (
    "You are a voice actor reading a script. Speak the user's message aloud word for word, exactly as it is "
    "written. Add nothing, leave nothing out, and do not answer it or comment on it."
)


def canonical(value: object) -> bytes:
    """Return JSON with sorted keys and no spaces: the same bytes for the same content."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def digest(value: object) -> str:
    """Return the SHA-256 of a value's canonical JSON, in hexadecimal digits."""
    return hashlib.sha256(canonical(value)).hexdigest()


def job_settings(spec: JobSpec) -> dict[str, Any]:
    """Return the job's settings that decide replies; runs compare them to say what changed."""
    fields = {"fields": _field_settings(spec)} if spec.fields else {}
    return fields | {
        "prompt": [turn.prompt for turn in spec.turn_specs()],
        "turn modalities": [list(turn.modalities or ()) for turn in spec.turn_specs()],
        "turn voices": [turn.voice for turn in spec.turn_specs()],
        "turn formats": [turn.format for turn in spec.turn_specs()],
        "system": spec.system,
        "read_aloud": spec.read_aloud,
        "model": spec.model,
        "voice": spec.voice,
        "format": spec.format,
        "temperature": spec.temperature,
        "seed": spec.seed,
        "max_completion_tokens": spec.max_completion_tokens,
        **sound_settings(spec),
    }


def _field_settings(spec: JobSpec) -> list[dict[str, Any]]:
    """Return the answer's fields as a fingerprint contains them."""
    return [field.model_dump(mode="json") for field in spec.fields]


def build_item(source: Source, spec: JobSpec) -> Item:
    """Build the item of a source: its turns with their fingerprints, and its settings.

    Manifests show these errors' messages, and `verify` compares them: a new wording would make it report a
    difference.

    Raises:
        InputError: the source's row lacks a placeholder's column, or there is audio on neither side.
    """
    first = spec.turn_specs()[0]
    if source.kind is SourceKind.PROMPT and "audio" not in (first.modalities or ()):
        raise InputError(
            "a text prompt cannot ask for text alone: the audio models want audio on one side; "
            "use modalities text,audio"
        )
    row = source.settings
    system = row.system if row.system is not None else spec.system or ""
    temperature = row.temperature if row.temperature is not None else spec.temperature
    seed = row.seed if row.seed is not None else spec.seed
    max_completion_tokens = row.max_completion_tokens or spec.max_completion_tokens
    preparation, finish = preparation_of(source, spec), finish_settings(spec)
    turns_so_far: list[list[object]] = []
    turns: list[Turn] = []
    turn_specs = spec.turn_specs()
    for number, turn_spec in enumerate(turn_specs, 1):
        modalities = turn_spec.modalities or ("text",)
        is_spoken = "audio" in modalities
        voice = (turn_spec.voice or row.voice or spec.voice) if is_spoken else ""
        audio_format = (turn_spec.format or row.format or spec.format) if is_spoken else ""
        text = _turn_text(source, turn_spec, number)
        turns_so_far.append([text, sorted(modalities), voice, audio_format])
        answer = answer_fields(spec.fields) if number == len(turn_specs) else None
        fingerprint = digest(
            {
                "version": FINGERPRINT_VERSION,
                "source": source.sha256,
                "preparation": preparation,
                "turns": turns_so_far,
                "system": system,
                "read_aloud": spec.read_aloud,
                "model": spec.model,
                "voice": voice,
                "format": audio_format,
                "modalities": sorted(modalities),
                "temperature": temperature,
                "seed": seed,
                "max_tokens": max_completion_tokens,
                **({"finish": finish} if is_spoken and finish else {}),
                **({"fields": _field_settings(spec)} if answer else {}),
            }
        )
        turns.append(
            Turn(
                number=number,
                text=text,
                modalities=modalities,
                voice=voice,
                format=audio_format,
                fingerprint=fingerprint,
                answer=answer,
            )
        )
    return Item(
        source=source,
        turns=tuple(turns),
        system=f"{READ_ALOUD}\n\n{system}".strip() if spec.read_aloud else system,
        model=spec.model,
        deployment=row.deployment,
        temperature=temperature,
        seed=seed,
        max_completion_tokens=max_completion_tokens,
        read_aloud=spec.read_aloud,
    )


def _turn_text(source: Source, turn_spec: TurnSpec, number: int) -> str:
    """Return the user's message in a turn.

    A job prompt with placeholders is a template for the whole message. Without any, it goes before the text of a
    source that is a prompt, or beside a recording. A follow-up has the job's prompt alone.
    """
    source_text = source.text if number == 1 else ""
    if not placeholders(turn_spec.prompt):
        job_text = fill(turn_spec.prompt, {})
        return "\n\n".join(part for part in (job_text, source_text) if part)
    columns = _template_columns(source)
    try:
        return fill(turn_spec.prompt, columns)
    except KeyError as missing:
        known = ", ".join(sorted(columns))
        raise InputError(f"the prompt asks for {{{missing.args[0]}}}; there is only: {known}") from None


def _template_columns(source: Source) -> dict[str, str]:
    """Return what a prompt template can name: the row's columns, and the input's id and file name."""
    columns = {"item_id": source.item_id}
    if source.path:
        path = PurePosixPath(source.path)
        columns |= {"filename": path.name, "stem": path.stem}
    if source.kind is SourceKind.PROMPT or source.text:
        columns["prompt"] = source.text
    columns |= {
        name: str(value)
        for name in ("filename", "voice", "format", "system", "deployment")
        if (value := getattr(source.settings, name)) is not None
    }
    return columns | dict(source.row)
