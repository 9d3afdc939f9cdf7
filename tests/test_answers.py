"""Answers as columns: asked for in words, read with care."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiobatch.answer_schema import AnswerFields, AnswerInvalid, read_fields
from audiobatch.errors import BadReply, ConfigError

FIELDS = {
    "fields": [
        {"name": "sentiment", "enum": ["positive", "neutral", "negative"]},
        {"name": "topic", "description": "what the call is about"},
        {"name": "minutes", "type": "number", "required": False},
        {"name": "calls", "type": "integer"},
        {"name": "solved", "type": "boolean"},
        {"name": "names", "type": "strings"},
    ]
}
GOOD = {"sentiment": "neutral", "topic": "billing", "calls": 2, "solved": True, "names": ["Anna"]}


def fields(tmp_path: Path, described: object = FIELDS) -> AnswerFields:
    path = tmp_path / "fields.json"
    path.write_text(json.dumps(described), encoding="utf-8")
    return read_fields(path)


def test_each_field_becomes_a_column_in_the_files_order(tmp_path: Path) -> None:
    assert fields(tmp_path).columns == (
        "reply.sentiment",
        "reply.topic",
        "reply.minutes",
        "reply.calls",
        "reply.solved",
        "reply.names",
    )


def test_the_instruction_names_every_field_with_its_kind_its_choices_and_its_meaning(tmp_path: Path) -> None:
    text = fields(tmp_path).instruction
    assert '"sentiment" (one of "positive", "neutral", "negative")' in text
    assert '"topic" (a string): what the call is about' in text
    assert '"minutes" (a number, or null where it does not apply)' in text
    assert "nothing else" in text


@pytest.mark.parametrize(
    "around", ["{}", "```json\n{}\n```", "Here it is:\n\n{}\n\nAnything else?", "{{not this}} but {}"]
)
def test_an_answer_is_read_with_its_types_whatever_stands_around_it(tmp_path: Path, around: str) -> None:
    answer = fields(tmp_path).parse(
        around.replace("{{not this}}", "{not this}").replace("{}", json.dumps(GOOD))
    )
    assert answer == {
        "reply.sentiment": "neutral",
        "reply.topic": "billing",
        "reply.minutes": None,
        "reply.calls": 2,
        "reply.solved": True,
        "reply.names": ["Anna"],
    }


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"sentiment": "angry"}, "sentiment"),
        ({"topic": None}, "topic"),
        ({"calls": "many"}, "calls"),
        ({"minutes": float("nan")}, "minutes"),
        ({"extra": 1}, "extra"),
        ({"names": "Anna"}, "names"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused_with_the_fields_name_and_asked_for_again(
    tmp_path: Path, change: dict[str, Any], word: str
) -> None:
    asked = fields(tmp_path)
    with pytest.raises(AnswerInvalid, match=word) as caught:
        asked.parse(json.dumps(GOOD | change))
    assert isinstance(caught.value, BadReply)
    repair = asked.repair_instruction(caught.value)
    assert word in repair
    assert asked.instruction in repair


@pytest.mark.parametrize("text", ["", "I cannot do that.", "[1, 2]", "{", '{"a": ' * 5000, "{" * 100_000])
def test_a_reply_without_an_object_is_refused_and_soon(tmp_path: Path, text: str) -> None:
    with pytest.raises(AnswerInvalid):
        fields(tmp_path).parse(text)


def test_a_field_may_have_a_name_that_python_or_pydantic_use_themselves(tmp_path: Path) -> None:
    asked = fields(tmp_path, [{"name": name} for name in ("class", "json", "copy")])
    assert asked.parse('{"class": "a", "json": "b", "copy": "c"}') == {
        "reply.class": "a",
        "reply.json": "b",
        "reply.copy": "c",
    }


@given(
    st.dictionaries(st.text(max_size=5), st.none() | st.booleans() | st.text() | st.integers(), max_size=4)
)
def test_any_object_is_either_taken_or_refused_in_words(answer: dict[str, Any]) -> None:
    one = AnswerFields(fields=())
    if answer:
        with pytest.raises(AnswerInvalid):
            one.parse(json.dumps(answer))
    else:
        assert one.parse("{}") == {}


@pytest.mark.parametrize(
    ("described", "words"),
    [
        ([], "has no fields"),
        ("text", "has no fields"),
        ([{"name": "a b"}], "letters, digits"),
        ([{"name": "a", "type": "date"}], "field 1, type"),
        ([{"name": "a", "enum": []}], "at least one value"),
        ([{"name": "a", "type": "integer", "enum": ["x"]}], "do not fit"),
        ([{"name": "a"}, {"name": "a"}], "two fields are called a"),
        ([{"name": "a", "typ": "string"}], "typ"),
    ],
)
def test_a_file_that_describes_no_usable_fields_is_refused_with_the_place(
    tmp_path: Path, described: list[dict[str, Any]] | list[dict[str, str]] | str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        fields(tmp_path, described)


def test_a_file_that_is_missing_or_no_json_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_fields(tmp_path / "gone.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        read_fields(tmp_path / "bad.json")


def test_fields_may_also_be_a_bare_list_or_names_with_descriptions(tmp_path: Path) -> None:
    listed = fields(tmp_path, [{"name": "a"}, {"name": "b", "type": "integer"}])
    named = fields(tmp_path, {"a": {}, "b": {"type": "integer"}})
    assert listed == named
