"""Output names: one item one name, on every file system, whatever else is in the folder."""

import re
import unicodedata
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from audiobatch.errors import InputError
from audiobatch.storage.local import LocalStorage
from audiobatch.storage.names import OUTPUT_ENDINGS, collision_key, output_path, output_stem

# What users' folders and tables have held, and what someone with bad intent would put there.
HOSTILE = [
    *("calls/anna.wav", "calls/anna.mp3", "calls/anna.m4a", "calls/anna", "calls/Anna.wav", "Calls/anna.wav"),
    *("CALLS/ANNA.WAV", "other/anna.wav", "anna.wav#left", "anna.wav#right", "calls/anna.mp3.wav"),
    *("caf\u00e9.wav", "cafe\u0301.wav", "CAF\u00c9.wav", "stra\u00dfe.wav", "strasse.wav", "STRASSE.wav"),
    *(
        "\u212b.wav",
        "\u00c5.wav",
        "A\u030a.wav",
        "\u00e5.wav",
        "\ufb01le.wav",
        "file.wav",
        "\uff46\uff49\uff4c\uff45.wav",
    ),
    *(
        "i.wav",
        "\u0131.wav",
        "\u0130.wav",
        "I.wav",
        "\u03c3.wav",
        "\u03c2.wav",
        "\u03a3.wav",
        "\u017f.wav",
        "s.wav",
    ),
    *("con", "CON", "con.wav", "con.txt.wav", "aux/a.wav", "nul.tar.mp3", "com1.wav", "com¹.wav", "lpt0.wav"),
    *("conin$.wav", "con .wav", "_con.wav", "console.wav", "prn"),
    *(
        ".hidden.wav",
        "hidden.wav",
        "..",
        ".",
        "...",
        "../../etc/passwd",
        "a/../b.wav",
        "a/./b.wav",
        "a//b.wav",
    ),
    *(
        "/etc/passwd",
        "//server/share/x.wav",
        "C:\\x.wav",
        "C:x.wav",
        "C:/x.wav",
        "a\\b.wav",
        "a/b.wav",
        "~/x.wav",
    ),
    *("-rf.wav", "--output=x.wav", "rf.wav", "_rf.wav", " x.wav", "x.wav ", "x .wav", "x. ", "x.", "x..wav"),
    *("a\nb.wav", "a\rb.wav", "a\tb.wav", "a\0b.wav", "a\x1b[2Jb.wav", "a\x7fb.wav", "a\x85b.wav", "a_b.wav"),
    *("\u202egpj.wav", "gpj.wav", "a\u200fb.wav", "a\u200bb.wav", "a\u2066b.wav", "ab.wav", "\ufeffab.wav"),
    *(
        "a\u00adb.wav",
        "a\u034fb.wav",
        "a\ufe0fb.wav",
        "a\u3164b.wav",
        "a\u2028b.wav",
        "a\u00a0b.wav",
        "a b.wav",
    ),
    *(
        "🎤.wav",
        "🎤🏽.wav",
        "👩\u200d🎤.wav",
        "👩🎤.wav",
        "日本語.wav",
        "한국어.wav",
        "עברית.wav",
        "नमस्ते.wav",
    ),
    *(
        "a" * 255 + ".wav",
        "a" * 256 + ".wav",
        "a" * 251 + ".wav",
        "é" * 127 + ".wav",
        "한" * 85 + ".wav",
        "🎤" * 63,
    ),
    *("a" * 300 + "1.wav", "a" * 300 + "2.wav", "d" * 255 + "/a.wav", "d" * 255 + "e/a.wav"),
    *(
        "/".join("d" * 400) + "/a.wav",
        "/".join("d" * 401) + "/a.wav",
        "d/" * 2000 + "a.wav",
        "x/" * 60 + "a.wav",
    ),
    *("anna.t2", "anna.t2.wav", "anna.t2.mp3", "anna.part1.wav", "anna.T2.wav", "calls/anna.t3.wav"),
    *("a.wav", "a.wav/b.wav", "a.wav/b", "a.WAV/b.wav", "a.txt/b.txt", "a", "a/b", "a/b.wav/c", "a.wav.wav"),
    *(
        "anna~k3j5h2m9q4.wav",
        "progra~1",
        "a<b.wav",
        "a>b.wav",
        'a"b.wav',
        "a|b.wav",
        "a?b.wav",
        "a*b.wav",
        "a:b.wav",
    ),
    *(
        "=1+1.wav",
        "@x.wav",
        "%00.wav",
        "$(x).wav",
        "`x`.wav",
        "x;y.wav",
        "{x}.wav",
        "x&y.wav",
        "'x'.wav",
        "x#y.wav",
    ),
    *(
        "bad\udcff.wav",
        "bad\udcfe.wav",
        "\ud800",
        "\U0010ffff.wav",
        "\uffff.wav",
        "\ue000.wav",
        "/",
        " ",
        "_",
    ),
    *(
        "prompt-0a1b2c3d4e",
        "prompt-0a1b2c3d4e-2",
        "welcome",
        "Welcome",
        "WELCOME",
        "1",
        "01",
        "1.0",
        "2026-11-20",
    ),
]

PIECES = st.sampled_from(
    [
        *(
            "a",
            "A",
            "b",
            "x",
            "é",
            "e\u0301",
            "ß",
            "ss",
            "\u017f",
            "\u0131",
            "İ",
            "i",
            "Å",
            "\u212b",
            "ﬁ",
            "Σ",
            "ς",
            "µ",
            "한",
        ),
        *(".wav", ".WAV", ".mp3", ".m4a", ".txt", ".json", ".t2", ".T2", ".t10", ".part1", ".part2", "."),
        *("/", "/", "..", "~", "~aaaaaaaaaa", "_", "-", " ", "\n", "\\", ":", "con", "CON", "nul", "#left"),
        *(
            "\u202e",
            "\u200d",
            "\ufe0f",
            "\u00ad",
            "🎤",
            "\udcff",
            "\uff57",
            "\u0345",
            "\u1e9e",
            "\u13a0",
            "\uab70",
            "0",
            "1",
        ),
        *("k" * 90, "K" * 90, "d/" * 80, "\u1100", "\u1161", "\u0f73", "\u0f71\u0f72"),
    ]
)
ITEM_IDS = st.lists(PIECES, min_size=1, max_size=6).map("".join) | st.text(
    st.characters(exclude_categories=()), min_size=1, max_size=30
)
ENDINGS = st.sampled_from([".wav", ".mp3", ".txt", ".json", ".pcm"])


def folded(path: str) -> set[str]:
    """The path as each kind of file system that is not exact compares it."""
    seen = path.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
    keys = set()
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        text = unicodedata.normalize(form, seen)
        keys |= {
            f"casefold {form} " + unicodedata.normalize(form, text.casefold()),
            f"upper {form} "
            + unicodedata.normalize(form, "".join(one if len(one := c.upper()) == 1 else c for c in text)),
        }
    return keys


def differ_by_an_ending(first: str, second: str) -> bool:
    """The one pair that the rule "plus the ending unless it is there" makes the same; refused when planning."""
    longer, shorter = sorted((first, second), key=len, reverse=True)
    same = longer.startswith(shorter) and longer[len(shorter) :] in OUTPUT_ENDINGS
    return same and PurePosixPath(shorter).suffix not in {*OUTPUT_ENDINGS, ".m4a"}


def outputs(item_id: str, ending: str) -> list[str]:
    return [
        output_path(item_id, folder="audio", ending=ending, turn=turn, part=part)
        for turn in (1, 2, 10)
        for part in (None, 1, 2)
    ]


def test_a_portable_name_in_lower_case_stays_as_it_is() -> None:
    for item_id in (
        "calls/anna.wav",
        "welcome",
        "prompt-0a1b2c3d4e",
        "my call.wav",
        "müller/日本語.wav",
        "a+b=c.wav",
    ):
        assert str(output_stem(item_id)) == item_id


def test_the_ending_is_added_unless_it_is_there() -> None:
    assert output_path("calls/anna.wav", folder="audio", ending=".wav") == "audio/calls/anna.wav"
    assert output_path("calls/anna.mp3", folder="audio", ending=".wav") == "audio/calls/anna.mp3.wav"
    assert output_path("welcome", folder="audio", ending=".wav") == "audio/welcome.wav"
    assert (
        output_path("calls/anna.wav", folder="transcripts", ending=".txt") == "transcripts/calls/anna.wav.txt"
    )
    assert output_path("prompts/a.txt", folder="transcripts", ending=".txt") == "transcripts/prompts/a.txt"
    assert output_path("anna.wav", folder="replies", ending=".json") == "replies/anna.wav.json"


def test_later_turns_and_parts_stand_before_the_ending() -> None:
    assert output_path("anna.wav", folder="audio", ending=".wav", turn=2) == "audio/anna.t2.wav"
    assert output_path("anna.wav", folder="audio", ending=".wav", turn=2, part=3) == "audio/anna.t2.part3.wav"
    assert output_path("anna", folder="transcripts", ending=".txt", turn=3) == "transcripts/anna.t3.txt"


def test_a_name_never_changes_from_one_release_to_the_next() -> None:
    # Pinned: a folder made by an earlier version goes on with the same names.
    assert {i: output_path(i, folder="audio", ending=".wav") for i in PINNED} == PINNED


PINNED = {
    "calls/Anna.wav": "audio/calls/Anna~ogf2pqftpj.wav",
    "con.wav": "audio/_con~eylsyak7xu.wav",
    "../../etc/passwd": "audio/__/__/etc/passwd~g5knnsz2hd.wav",
    "größe.wav": "audio/größe~kl45i5ldwe.wav",
    "mu\u0308ller.wav": "audio/müller~ckmwfksjfn.wav",
    "a.wav/b.wav": "audio/a.wav_/b~njru6ujqhj.wav",
    "anna.t2.wav": "audio/anna.t2~dofobbg7ja.wav",
    "\u202egpj.wav": "audio/_gpj~egr4frhewd.wav",
    "bad\udcff.wav": "audio/bad_~6eencviulo.wav",
    "C:\\x\\y.wav": "audio/C__x_y~bffpw25jq7.wav",
    "🎤 talk.wav": "audio/🎤 talk~yfjksg7faw.wav",
}


def test_every_item_of_a_hostile_folder_has_its_own_outputs_on_every_file_system() -> None:
    taken: dict[str, tuple[str, str]] = {}
    assert len(set(HOSTILE)) == len(HOSTILE)
    for item_id in HOSTILE:
        for ending in (".wav", ".txt"):
            for path in outputs(item_id, ending):
                for key in folded(path):
                    other, other_path = taken.setdefault(key, (item_id, path))
                    if other == item_id:
                        assert other_path == path
                    elif not differ_by_an_ending(item_id, other):
                        pytest.fail(f"{item_id!r} and {other!r} share {path!r}")


def test_the_mapping_is_the_same_when_half_the_files_are_absent() -> None:
    everything = {item_id: str(output_stem(item_id)) for item_id in HOSTILE}
    for absent in (HOSTILE[::2], HOSTILE[1::2]):
        for item_id in absent:
            assert str(output_stem(item_id)) == everything[item_id]


def test_a_hostile_folder_can_be_written_and_read_back(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "out")
    items = [
        i
        for i in HOSTILE
        if not any(differ_by_an_ending(i, j) for j in HOSTILE if j != i and len(j) < len(i))
    ]
    for number, item_id in enumerate(items):
        storage.write(output_path(item_id, folder="audio", ending=".wav", turn=99, part=999), b"%d" % number)
    assert len([p for p in (tmp_path / "out").rglob("*") if p.is_file()]) == len(items) > 150
    for number, item_id in enumerate(items):
        path = output_path(item_id, folder="audio", ending=".wav", turn=99, part=999)
        assert storage.read(path) == b"%d" % number
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@given(ITEM_IDS, ITEM_IDS, ENDINGS)
@example("calls/anna.wav", "Calls/anna.wav", ".wav")
@example("a.mp3", "a.mp3.wav", ".wav")
@example("a.t2", "a", ".wav")
def test_two_items_never_share_an_output(first: str, second: str, ending: str) -> None:
    assume(first != second and not differ_by_an_ending(first, second))
    for mine in outputs(first, ending):
        for theirs in outputs(second, ending):
            assert not folded(mine) & folded(theirs), f"{mine!r} and {theirs!r}"


@given(ITEM_IDS)
def test_the_twins_of_an_item_have_names_of_their_own(item_id: str) -> None:
    twins = {
        item_id,
        item_id.upper(),
        item_id.lower(),
        item_id.swapcase(),
        item_id.casefold(),
        item_id.title(),
    }
    twins |= {unicodedata.normalize(form, twin) for form in ("NFC", "NFD", "NFKC", "NFKD") for twin in twins}
    keys = [key for twin in twins for key in folded(output_path(twin, folder="audio", ending=".wav"))]
    assert len(keys) == len(set(keys))


@given(ITEM_IDS, ITEM_IDS, ENDINGS, ENDINGS)
def test_no_output_is_where_another_needs_a_folder(
    first: str, second: str, ending: str, other_ending: str
) -> None:
    file = collision_key(output_path(first, folder="audio", ending=ending))
    for folder in PurePosixPath(output_path(second, folder="audio", ending=other_ending)).parents:
        assert collision_key(str(folder)) != file


@given(ITEM_IDS, ENDINGS, st.integers(1, 99), st.none() | st.integers(1, 999))
def test_every_output_is_a_portable_relative_path(
    item_id: str, ending: str, turn: int, part: int | None
) -> None:
    path = output_path(item_id, folder="transcripts", ending=ending, turn=turn, part=part)
    assert path.startswith("transcripts/")
    assert path.endswith(ending)
    assert len(path.encode("utf-16-le")) // 2 <= 12 + 180 + 24
    for component in path.split("/"):
        assert component not in {"", ".", ".."}
        assert len(component.encode()) <= 255
        assert not re.search(
            r'[\x00-\x1f\x7f-\x9f<>:"\\|?*\u200b-\u200f\u202a-\u202e\u2066-\u2069]', component
        )
        assert component[0] not in " .-"
        assert component[-1] not in " ."
        assert not re.fullmatch(r"(?i)(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])(\..*)?", component)


@given(ITEM_IDS)
def test_a_name_is_changed_or_marked_but_never_only_changed(item_id: str) -> None:
    stem = str(output_stem(item_id))
    assert (stem == item_id and "~" not in stem) or re.search(r"~[a-z2-7]{10}(\.[A-Za-z0-9]+)?$", stem)


@given(ITEM_IDS, ITEM_IDS)
def test_the_collision_key_is_the_same_for_what_any_file_system_takes_for_one(
    first: str, second: str
) -> None:
    if folded(first) & folded(second):
        assert collision_key(first) == collision_key(second)


@given(st.text(st.characters(max_codepoint=0x10FFFF, exclude_categories=["Cs"]), min_size=1, max_size=8))
def test_a_letter_newer_than_the_oldest_file_system_is_always_marked(text: str) -> None:
    # Its folding may differ between versions of Unicode, and with it what is a twin.
    if any(unicodedata.ucd_3_2_0.category(character) == "Cn" for character in text):
        assert "~" in str(output_stem(text))


def test_a_table_chooses_its_own_filename() -> None:
    def path(filename: str, **how: Any) -> str:
        return output_path("any/ID", folder="audio", ending=".wav", filename=filename, **how)

    assert path("IVR/en/Welcome.wav") == "audio/IVR/en/Welcome.wav"
    assert path("Welcome", turn=2) == "audio/Welcome.t2.wav"
    assert path(" Grüße ") == "audio/Grüße.wav"
    assert path("cafe\u0301") == "audio/café.wav"
    assert path("a~b") == "audio/a~b.wav"


@pytest.mark.parametrize(
    "filename",
    [
        "../x",
        "/x",
        "a//b",
        "a\\b",
        "C:x",
        "con",
        "aux/x",
        ".x",
        "-x",
        "x.",
        "a\nb",
        "a?b",
        "a\u202eb",
        "a.wav/b",
        "a.t2",
        "a.part1.wav",
        "x" * 300,
    ],
)
def test_a_filename_that_some_system_refuses_is_refused_with_one_that_works(filename: str) -> None:
    with pytest.raises(InputError, match=r"does not work on every system.*; a name that does: '.+'|too long"):
        output_path("id", folder="audio", ending=".wav", filename=filename)


def test_an_empty_filename_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        output_path("id", folder="audio", ending=".wav", filename="  ")


@pytest.mark.parametrize("filename", ["../x", "a?b/c ", "con", "-x", "b/a.t2"])
def test_the_filename_that_the_refusal_proposes_is_accepted(filename: str) -> None:
    with pytest.raises(InputError) as refusal:
        output_path("id", folder="audio", ending=".wav", filename=filename)
    proposed = refusal.value.message.rpartition(": ")[2].strip("'")
    assert output_path("id", folder="audio", ending=".wav", filename=proposed) == f"audio/{proposed}.wav"


@pytest.mark.parametrize("wrong", [{"ending": "wav"}, {"ending": ".exe"}, {"turn": 0}, {"part": 0}])
def test_a_call_that_makes_no_sense_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        output_path("a", **({"folder": "audio", "ending": ".wav"} | wrong))
