"""Two items never get one output name, not by an ending and not by a table's own `filename`s."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiobatch.errors import InputError
from audiobatch.storage.names import OUTPUT_ENDINGS, Claims, collision_key, output_path

PIECES = st.sampled_from(
    ["a", "A", "b", ".wav", ".mp3", ".m4a", ".txt", "/", ".t2", "é", "e\u0301", "~", "_t2"]
)
NAMES = st.lists(PIECES, min_size=1, max_size=4).map("".join)
ROWS = st.lists(st.tuples(NAMES, st.none() | NAMES), min_size=2, max_size=8, unique_by=lambda row: row[0])


def test_the_first_has_the_name_and_the_second_hears_whose_it_is() -> None:
    claims = Claims()
    assert claims.claim("greeting") is None
    assert claims.claim("greeting.wav") == "greeting"
    assert claims.claim("other", "Greeting.mp3") == "greeting"
    assert claims.claim("other") is None
    assert claims.claim("other") is None, "its own"


def test_the_order_does_not_matter() -> None:
    claims = Claims()
    assert claims.claim("greeting.wav") is None
    assert claims.claim("greeting") == "greeting.wav"


def test_what_is_apart_by_itself_is_never_refused() -> None:
    claims = Claims()
    ids = [
        "anna.wav",
        "anna.mp3",
        "Anna.wav",
        "anna.wav#left",
        "calls/anna.wav",
        "anna.mp3.wav",
        "cafe\u0301",
        "café",
    ]
    assert [claims.claim(item_id) for item_id in ids] == [None] * len(ids)


def test_a_filename_may_not_be_another_item_s_name() -> None:
    claims = Claims()
    assert claims.claim("calls/anna.wav") is None
    for filename in ("calls/anna.wav", "Calls/ANNA.WAV", "calls/anna", "calls/anna.wav.mp3"):
        assert claims.claim("row-1", filename) == "calls/anna.wav"
    assert claims.claim("row-1", "calls/ben.wav") is None


def test_a_filename_that_no_system_takes_is_refused_as_such() -> None:
    with pytest.raises(InputError, match="does not work on every system"):
        Claims().claim("row-1", "../x")


@given(ROWS)
def test_accepted_items_share_no_output_whatever_their_formats(rows: list[tuple[str, str | None]]) -> None:
    claims = Claims()
    owner: dict[str, str] = {}
    for item_id, filename in rows:
        try:
            if claims.claim(item_id, filename) is not None:
                continue
        except InputError:
            continue
        for ending in OUTPUT_ENDINGS:
            for turn in (1, 2):
                path = output_path(item_id, folder="audio", ending=ending, turn=turn, filename=filename)
                assert owner.setdefault(collision_key(path), item_id) == item_id
