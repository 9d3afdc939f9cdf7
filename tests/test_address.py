"""Addresses: what is taken, what is refused, and what is shown of it."""

from pathlib import Path

import pytest

from pipeline.address import Address, absolute, is_remote, masked, place_of


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("az://in/recordings", Address("az", "in/recordings")),
        ("az://in/recordings/", Address("az", "in/recordings")),
        ("abfs://in/recordings", Address("az", "in/recordings")),
        ("S3://bucket", Address("s3", "bucket")),
        ("memory://out/run 1", Address("memory", "out/run 1")),
        ("file:///data/run%201", Path("/data/run 1")),
        ("file://localhost/data", Path("/data")),
        ("recordings", Path("recordings")),
        ("a:b/c", Path("a:b/c")),
    ],
)
def test_what_names_a_place(text, place):
    assert place_of(text) == place
    assert is_remote(text) == isinstance(place, Address)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("az://user:hunter2@in/recordings", "carries a user name"),
        ("s3://AKIA:hunter2@bucket/x", "carries a user name"),
        ("az://in/recordings?sv=2025&sig=hunter2", "has a query"),
        ("https://acct.blob.core.windows.net/in?sig=hunter2", "https:// is no store"),
        ("gs://bucket/hunter2", "gs:// is no store"),
        ("az://", "give az://container/prefix"),
        ("az://in//x", "without empty parts"),
        ("s3://bucket/../hunter2", "without empty parts"),
        ("file://host/hunter2", "three slashes"),
    ],
)
def test_what_is_refused_is_not_repeated(text, why):
    with pytest.raises(ValueError, match=why) as refused:
        place_of(text)
    assert "hunter2" not in str(refused.value)


def test_an_address_is_built_and_read_like_a_path():
    root = Address("az", "out/run1")
    assert str(root / "audio/a.wav") == "az://out/run1/audio/a.wav"
    assert (root.name, str(root.parent), (root / "x.csv").suffix) == ("run1", "az://out", ".csv")
    assert (root / "a").is_within(root)
    assert not Address("az", "out/run10").is_within(root)
    assert absolute("az://out/run1/") == "az://out/run1"
    assert absolute("x") == str(Path("x").resolve())


def test_what_is_shown_has_no_secret():
    shown = masked(("az://user:pw@in/x?sig=1", "plain", 3))
    assert shown == ("az://…@in/x?…", "plain", 3)
