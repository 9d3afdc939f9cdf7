"""Describe the fields of a JSON answer, request them in the prompt, and parse the reply into manifest columns.

Audio models do not support structured outputs, so that the prompt describes the fields, and the reply is parsed and
validated here. A reply that does not fit gets one repair turn, which says what was wrong. `fields.json`:

    {"fields": [
      {"name": "sentiment", "type": "string", "enum": ["positive", "neutral", "negative"]},
      {"name": "topic", "type": "string", "description": "what the call is about, in one or two words"},
      {"name": "minutes_waited", "type": "number", "required": false}
    ]}

A list of fields alone is accepted too, and so is `{"sentiment": {"type": …}, …}`. Types: `string` (the default),
`integer`, `number`, `boolean`, `strings` (a list of strings).
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

#: Prefix of the manifest's columns for parsed answers.
REPLY_PREFIX = "reply."
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,63}")
_TYPES: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": Annotated[float, Field(allow_inf_nan=False)],
    "boolean": bool,
    "strings": list[str],
}
_TYPE_NAMES = {
    "string": "a string",
    "integer": "an integer",
    "number": "a number",
    "boolean": "true or false",
    "strings": "a list of strings",
}
_MAX_PROBLEM_CHARACTERS = 400
_MAX_TRIES = 100


class AnswerInvalid(BadReply):
    """The reply lacks the requested fields. A repair turn contains the message, which says why."""


class AnswerField(BaseModel):
    """A field as `fields.json` describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    type: Literal["string", "integer", "number", "boolean", "strings"] = "string"
    description: str = ""
    enum: tuple[str | int | float, ...] | None = None
    required: bool = True

    @field_validator("name")
    @classmethod
    def _check_name(cls, name: str) -> str:
        if not _NAME.fullmatch(name):
            raise ValueError(
                f"{name!r} must begin with a letter and have letters, digits and _ alone, at most 64 characters"
            )
        return name

    @model_validator(mode="after")
    def _check_enum(self) -> AnswerField:
        if self.enum is not None:
            if not self.enum:
                raise ValueError(f"{self.name}: an enum needs at least one value")
            wanted = {"integer": (int,), "number": (int, float)}.get(self.type, (str,))
            if self.type == "boolean" or not all(isinstance(value, wanted) for value in self.enum):
                raise ValueError(f"{self.name}: the enum's values do not fit the type {self.type}")
        return self

    def annotation(self) -> Any:
        """Return the field's type for pydantic."""
        inner: Any = _TYPES[self.type]
        if self.enum is not None:
            literal: Any = Literal
            inner = literal[self.enum] if self.type != "strings" else list[literal[self.enum]]
        return inner if self.required else inner | None

    def instruction(self) -> str:
        """Return the line of the instruction that describes this field."""
        kind = _TYPE_NAMES[self.type]
        if self.enum is not None:
            one_of = ", ".join(json.dumps(value, ensure_ascii=False) for value in self.enum)
            kind = f"{kind}, each one of {one_of}" if self.type == "strings" else f"one of {one_of}"
        optional = "" if self.required else ", or null where it does not apply"
        about = f": {self.description}" if self.description else ""
        return f'- "{self.name}" ({kind}{optional}){about}'


@dataclass(frozen=True)
class AnswerFields:
    """The fields of a job: the instruction that requests them, and the parser of the reply."""

    fields: tuple[AnswerField, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The manifest's columns for these fields, in the file's order."""
        return tuple(f"{REPLY_PREFIX}{field.name}" for field in self.fields)

    @property
    def instruction(self) -> str:
        """The text that is added to the user's message."""
        lines = "\n".join(field.instruction() for field in self.fields)
        return (
            "Answer with one JSON object and nothing else: no introduction, no code fence, no remarks. "
            f"It has exactly these fields:\n{lines}"
        )

    def repair_instruction(self, problem: AnswerInvalid | str) -> str:
        """Return the message of the repair turn."""
        return f"That was not as asked: {problem}. {self.instruction}"

    def parse(self, text: str) -> dict[str, object]:
        """Parse an answer into values by column (`reply.<name>`); optional ones may be None.

        Text around the JSON object is ignored; the object itself must fit exactly.

        Raises:
            AnswerInvalid: there is no JSON object, or a field is missing, unknown or of the wrong type.
        """
        answer = _object_in(text)
        try:
            valid = self._model.model_validate(answer)
        except ValidationError as error:
            problems = "; ".join(
                f'"{".".join(str(part) for part in problem["loc"])}": {problem["msg"]}'
                for problem in error.errors(include_url=False, include_input=False)
            )
            raise AnswerInvalid(problems[:_MAX_PROBLEM_CHARACTERS]) from None
        return {f"{REPLY_PREFIX}{name}": value for name, value in valid.model_dump(by_alias=True).items()}

    def parse_leniently(self, text: str) -> dict[str, object]:
        """Parse an answer to another version of the fields: return the values that fit."""
        try:
            return self.parse(text)
        except AnswerInvalid:
            pass
        try:
            answer = _object_in(text)
        except AnswerInvalid:
            return {}
        values: dict[str, object] = {}
        for field in self.fields:
            with suppress(ValidationError):
                if field.name in answer:
                    value = self._types[field.name].validate_python(answer[field.name])
                    values[f"{REPLY_PREFIX}{field.name}"] = value
        return values

    @cached_property
    def _types(self) -> dict[str, TypeAdapter[Any]]:
        return {field.name: TypeAdapter(field.annotation()) for field in self.fields}

    @cached_property
    def _model(self) -> type[BaseModel]:
        definitions: dict[str, Any] = {
            f"field_{index}": (
                Annotated[field.annotation(), Field(alias=field.name)],
                ... if field.required else None,
            )
            for index, field in enumerate(self.fields)
        }
        return create_model("Answer", __config__=ConfigDict(extra="forbid"), **definitions)


@lru_cache(maxsize=8)
def answer_fields(fields: tuple[AnswerField, ...]) -> AnswerFields | None:
    """Return the fields of a job, built once; None for a job without fields."""
    return AnswerFields(fields=fields) if fields else None


def load_fields(value: object) -> object:
    """Read a job's fields if they are given as the path of a `fields.json`.

    Raises:
        ConfigError: the file cannot be used.
    """
    if not isinstance(value, (str, Path)):
        return value
    return read_fields(Path(value)).fields if str(value) else ()


def read_fields(path: Path) -> AnswerFields:
    """Read `fields.json`.

    Raises:
        ConfigError: the file is missing, is not JSON, or describes no valid fields; the message says where.
    """
    try:
        described = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"--fields {path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ConfigError(f"--fields {path}: is not JSON: {error}") from error
    if isinstance(described, Mapping) and isinstance(described.get("fields"), list):
        described = described["fields"]
    elif isinstance(described, Mapping):
        described = [
            {"name": name, **(rest if isinstance(rest, Mapping) else {})} for name, rest in described.items()
        ]
    if not isinstance(described, list) or not described:
        raise ConfigError(f'--fields {path}: has no fields; it needs a list of them under "fields"')
    fields = []
    for number, description in enumerate(described, start=1):
        try:
            fields.append(AnswerField.model_validate(description))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"--fields {path}: field {number}{f', {where}' if where else ''}: {first['msg']}"
            ) from error
    names = [field.name for field in fields]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"--fields {path}: two fields are called {', '.join(repeated)}")
    return AnswerFields(fields=tuple(fields))


def _object_in(text: str) -> dict[str, object]:
    """Return the first JSON object in a text."""
    decoder = json.JSONDecoder()
    for brace in islice(re.finditer(r"\{", text), _MAX_TRIES):
        try:
            value, _ = decoder.raw_decode(text, brace.start())
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    raise AnswerInvalid("there is no JSON object in it")
