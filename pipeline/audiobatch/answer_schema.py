"""Answers as columns: a job asks for named fields, the reply's text holds them as JSON, each becomes a column.

Audio models take no structured outputs, so the fields are asked for in words, and what comes back is parsed and
validated here. A reply that does not fit gets one repair turn, which says what was wrong. `fields.json`:

    {"fields": [
      {"name": "sentiment", "type": "string", "enum": ["positive", "neutral", "negative"]},
      {"name": "topic", "type": "string", "description": "what the call is about, in one or two words"},
      {"name": "minutes_waited", "type": "number", "required": false}
    ]}

A bare list of fields is taken too, and so is `{"sentiment": {"type": …}, …}`. Types: `string` (the default),
`integer`, `number`, `boolean`, `strings` (a list of words).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    create_model,
    field_validator,
    model_validator,
)

from audiobatch.errors import BadReply, ConfigError

#: The manifest's columns for parsed answers begin with this.
REPLY_PREFIX = "reply."
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": Annotated[float, Field(allow_inf_nan=False)],
    "boolean": bool,
    "strings": list[str],
}
_IN_WORDS = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "strings": "a list of strings",
}
_LONGEST_SHOWN = 400
_MOST_TRIES = 100


class AnswerInvalid(BadReply):
    """The reply does not hold the fields as asked. The message says why, ready for a repair turn."""


class AnswerField(BaseModel):
    """One field as `fields.json` describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    type: Literal["string", "integer", "number", "boolean", "strings"] = "string"
    description: str = ""
    enum: tuple[str | int | float, ...] | None = None
    required: bool = True

    @field_validator("name")
    @classmethod
    def _is_a_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} must be letters, digits and _, beginning with a letter, 64 at most")
        return name

    @model_validator(mode="after")
    def _enum_fits_the_type(self) -> AnswerField:
        if self.enum is not None:
            if not self.enum:
                raise ValueError(f"{self.name}: an enum needs at least one value")
            wanted = {"integer": (int,), "number": (int, float)}.get(self.type, (str,))
            if self.type == "boolean" or not all(isinstance(value, wanted) for value in self.enum):
                raise ValueError(f"{self.name}: the enum's values do not fit the type {self.type}")
        return self

    def annotation(self) -> Any:
        """The field's type for pydantic."""
        inner: Any = _TYPES[self.type]
        if self.enum is not None:
            literal: Any = Literal
            inner = literal[self.enum] if self.type != "strings" else list[literal[self.enum]]
        return inner if self.required else inner | None

    def in_words(self) -> str:
        """One line of the instruction."""
        kind = _IN_WORDS[self.type]
        if self.enum is not None:
            one_of = ", ".join(json.dumps(value, ensure_ascii=False) for value in self.enum)
            kind = f"{kind}, each one of {one_of}" if self.type == "strings" else f"one of {one_of}"
        optional = "" if self.required else ", or null where it does not apply"
        about = f": {self.description}" if self.description else ""
        return f'- "{self.name}" ({kind}{optional}){about}'


@dataclass(frozen=True)
class AnswerFields:
    """The fields of a job: what to ask, and how to read what comes back."""

    fields: tuple[AnswerField, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The manifest's columns for these fields, in the file's order."""
        return tuple(f"{REPLY_PREFIX}{field.name}" for field in self.fields)

    @property
    def instruction(self) -> str:
        """What to add to the system prompt or the user's text."""
        lines = "\n".join(field.in_words() for field in self.fields)
        return (
            "Answer with one JSON object and nothing else: no introduction, no code fence, no remarks. "
            f"It has exactly these fields:\n{lines}"
        )

    def repair_instruction(self, problem: AnswerInvalid | str) -> str:
        """What to say in the one repair turn."""
        return f"That was not as asked: {problem}. {self.instruction}"

    def parse(self, text: str) -> dict[str, object]:
        """The answer's values by column (`reply.<name>`), typed; optional ones may be None.

        A code fence or words around the object are passed over; what is in it must fit exactly.

        Raises:
            AnswerInvalid: no JSON object, a field missing or of the wrong kind, or a field too many.
        """
        answer = _object_in(text)
        try:
            valid = self._model.model_validate(answer)
        except ValidationError as error:
            problems = "; ".join(
                f'"{".".join(str(part) for part in problem["loc"])}": {problem["msg"]}'
                for problem in error.errors(include_url=False, include_input=False)
            )
            raise AnswerInvalid(problems[:_LONGEST_SHOWN]) from None
        return {f"{REPLY_PREFIX}{name}": value for name, value in valid.model_dump(by_alias=True).items()}

    def readable(self, text: str) -> dict[str, object]:
        """As `parse`, but of an answer that was asked for otherwise: the values that fit, whatever the rest."""
        try:
            return self.parse(text)
        except AnswerInvalid:
            pass
        try:
            answer = _object_in(text)
        except AnswerInvalid:
            return {}
        found: dict[str, object] = {}
        for field in self.fields:
            with suppress(ValidationError):
                if field.name in answer:
                    found[f"{REPLY_PREFIX}{field.name}"] = self._kinds[field.name].validate_python(
                        answer[field.name]
                    )
        return found

    @cached_property
    def _kinds(self) -> dict[str, TypeAdapter[Any]]:
        return {field.name: TypeAdapter(field.annotation()) for field in self.fields}

    @cached_property
    def _model(self) -> type[BaseModel]:
        definitions: dict[str, Any] = {
            f"field_{place}": (
                Annotated[field.annotation(), Field(alias=field.name)],
                ... if field.required else None,
            )
            for place, field in enumerate(self.fields)
        }
        return create_model("Answer", __config__=ConfigDict(extra="forbid"), **definitions)


@lru_cache(maxsize=8)
def answer_fields(fields: tuple[AnswerField, ...]) -> AnswerFields | None:
    """The fields of a job as one object, made once; None for a job without any."""
    return AnswerFields(fields=fields) if fields else None


def fields_given(value: object) -> object:
    """What a job may say for its fields: the path of a `fields.json`, or the fields themselves.

    Raises:
        ConfigError: the file cannot be used.
    """
    if not isinstance(value, (str, Path)):
        return value
    return read_fields(Path(value)).fields if str(value) else ()


def read_fields(path: Path) -> AnswerFields:
    """Read `fields.json`.

    Raises:
        ConfigError: the file is missing, is no JSON, or describes no usable fields; the message names the place.
    """
    try:
        described = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"--fields {path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"--fields {path}: is no JSON: {error}") from error
    if isinstance(described, Mapping) and isinstance(described.get("fields"), list):
        described = described["fields"]
    elif isinstance(described, Mapping):
        described = [
            {"name": name, **(rest if isinstance(rest, Mapping) else {})} for name, rest in described.items()
        ]
    if not isinstance(described, list) or not described:
        raise ConfigError(f'--fields {path}: holds no fields; it needs a list of them under "fields"')
    fields = []
    for place, one in enumerate(described, start=1):
        try:
            fields.append(AnswerField.model_validate(one))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"--fields {path}: field {place}{f', {where}' if where else ''}: {first['msg']}"
            ) from error
    names = [field.name for field in fields]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--fields {path}: {', '.join(twice)} is there twice")
    return AnswerFields(fields=tuple(fields))


def _object_in(text: str) -> dict[str, object]:
    """The first JSON object in the text."""
    decoder = json.JSONDecoder()
    for found in islice(re.finditer(r"\{", text), _MOST_TRIES):
        try:
            value, _ = decoder.raw_decode(text, found.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    raise AnswerInvalid("there is no JSON object in it")
