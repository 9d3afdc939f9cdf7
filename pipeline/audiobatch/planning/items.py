"""A Source becomes an Item: templates filled, row settings over job settings, fingerprints computed.

A fingerprint says what a reply was bought for. It holds everything that decides the reply and nothing that
does not: no deployment, endpoint, transport or prepared bytes, so that moving region or upgrading a codec
buys nothing again. Preparation that is left at its default is left out, so that later options change no old
fingerprint.
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
    """JSON with sorted keys and no spaces: the same bytes for the same content."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def digest(value: object) -> str:
    return hashlib.sha256(canonical(value)).hexdigest()


def job_settings(spec: JobSpec) -> dict[str, Any]:
    """The job's settings that decide replies: compared between runs to say what changed."""
    fields = {"fields": fields_described(spec)} if spec.fields else {}
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


def fields_described(spec: JobSpec) -> list[dict[str, Any]]:
    """The answer's fields, as far as they decide what is asked and what is accepted."""
    return [field.model_dump(mode="json") for field in spec.fields]


def build_item(source: Source, spec: JobSpec) -> Item:
    """What will be asked of one source.

    Raises:
        InputError: a placeholder that the source's row does not have, or audio on neither side.
    """
    first = spec.turn_specs()[0]
    if source.kind is SourceKind.PROMPT and "audio" not in (first.modalities or ()):
        raise InputError(
            "a text prompt cannot ask for text alone: the audio models want audio on one side; "
            "use modalities text,audio"
        )
    own = source.settings
    system = own.system if own.system is not None else spec.system or ""
    temperature = own.temperature if own.temperature is not None else spec.temperature
    seed = own.seed if own.seed is not None else spec.seed
    longest = own.max_completion_tokens or spec.max_completion_tokens
    preparation, finish = preparation_of(source, spec), finish_settings(spec)
    said: list[list[object]] = []
    turns: list[Turn] = []
    asked_turns = spec.turn_specs()
    for number, asked in enumerate(asked_turns, 1):
        modalities = asked.modalities or ("text",)
        aloud = "audio" in modalities
        voice = (asked.voice or own.voice or spec.voice) if aloud else ""
        audio_format = (asked.format or own.format or spec.format) if aloud else ""
        text = turn_text(source, asked, number)
        said.append([text, sorted(modalities), voice, audio_format])
        answer = answer_fields(spec.fields) if number == len(asked_turns) else None
        fingerprint = digest(
            {
                "version": FINGERPRINT_VERSION,
                "source": source.sha256,
                "preparation": preparation,
                "turns": said,
                "system": system,
                "read_aloud": spec.read_aloud,
                "model": spec.model,
                "voice": voice,
                "format": audio_format,
                "modalities": sorted(modalities),
                "temperature": temperature,
                "seed": seed,
                "max_tokens": longest,
                **({"finish": finish} if aloud and finish else {}),
                **({"fields": fields_described(spec)} if answer else {}),
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
        deployment=own.deployment,
        temperature=temperature,
        seed=seed,
        max_completion_tokens=longest,
        read_aloud=spec.read_aloud,
    )


def turn_text(source: Source, asked: TurnSpec, number: int) -> str:
    """What the user says in a turn.

    A job prompt with placeholders is a template for the whole message. Without any, it goes before the text
    of a prompt's own; beside a recording it is the text part. Follow-ups are the job's alone.
    """
    own_text = source.text if number == 1 else ""
    if not placeholders(asked.prompt):
        job_text = fill(asked.prompt, {})
        return "\n\n".join(part for part in (job_text, own_text) if part)
    columns = columns_of(source)
    try:
        return fill(asked.prompt, columns)
    except KeyError as missing:
        known = ", ".join(sorted(columns))
        raise InputError(f"the prompt asks for {{{missing.args[0]}}}; there is only: {known}") from None


def columns_of(source: Source) -> dict[str, str]:
    """What a prompt template can name: the row's columns, and the input's own id and file name."""
    columns = {"item_id": source.item_id}
    if source.path:
        path = PurePosixPath(source.path)
        columns |= {"filename": path.name, "stem": path.stem}
    if source.kind is SourceKind.PROMPT or source.text:
        columns["prompt"] = source.text
    own = source.settings
    columns |= {
        name: str(value)
        for name in ("filename", "voice", "format", "system", "deployment")
        if (value := getattr(own, name)) is not None
    }
    return columns | dict(source.row)
