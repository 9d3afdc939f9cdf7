"""Addresses: what is taken, what is refused, and what is shown of it."""

from pathlib import Path

import pytest

from audiobatch.address import Address, absolute, is_remote, masked, parse_location
from audiobatch.config.jobspec import checked_endpoint


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
def test_what_names_a_place(text: str, place: Address | Path) -> None:
    assert parse_location(text) == place
    assert is_remote(text) == isinstance(place, Address)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("az://user:hunter2@in/recordings", "has a user name"),
        ("s3://AKIA:hunter2@bucket/x", "has a user name"),
        ("az://in/recordings?sv=2025&sig=hunter2", "has a query"),
        ("https://acct.blob.core.windows.net/in?sig=hunter2", "https:// is not a known store"),
        ("gs://bucket/hunter2", "gs:// is not a known store"),
        ("az://", "give az://container/prefix"),
        ("az://in//x", "without empty parts"),
        ("s3://bucket/../hunter2", "without empty parts"),
        ("file://host/hunter2", "three slashes"),
    ],
)
def test_what_is_refused_is_not_repeated(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why) as refused:
        parse_location(text)
    assert "hunter2" not in str(refused.value)


def test_an_address_is_built_and_read_like_a_path() -> None:
    root = Address("az", "out/run1")
    assert str(root / "audio/a.wav") == "az://out/run1/audio/a.wav"
    assert (root.name, str(root.parent), (root / "x.csv").suffix) == ("run1", "az://out", ".csv")
    assert (root / "a").is_within(root)
    assert not Address("az", "out/run10").is_within(root)
    assert absolute("az://out/run1/") == "az://out/run1"
    assert absolute("x") == str(Path("x").resolve())


def test_what_is_shown_has_no_secret() -> None:
    shown = masked(("az://user:pw@in/x?sig=1", "plain", 3))
    assert shown == ("az://…@in/x?…", "plain", 3)
    assert masked("az://in/a@b.wav") == "az://in/a@b.wav", "an object's own name"
    for password in ("pw", "p?w", "p/w", "p@w", "p#w"):
        assert masked(f"https://user:{password}@host/path") == "https://…@host/path"


@pytest.mark.parametrize(
    "address",
    [
        "https://east.openai.azure.com",
        "https://gateway.example/apis/audio",
        "https://gateway.example:8443",
        "http://localhost:8000",
        "http://127.0.0.1:8000/v1",
        "http://[::1]:8000",
    ],
)
def test_a_service_s_address_is_taken_without_its_last_slash(address: str) -> None:
    assert checked_endpoint(address) == checked_endpoint(f"{address}/") == address


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("east.openai.azure.com", "begins with https"),
        ("ftp://east", "begins with https"),
        ("https://", "host name|begins with https"),
        ("https://hunter2:hunter2@east", "without a user name"),
        ("https://hunter2@east", "without a user name"),
        ("https://east/?api-key=hunter2", "without '\\?'"),
        ("https://east/#hunter2", "without '\\?'"),
        ("http://east.openai.azure.com", "plain http"),
        ("http://localhost.evil.example", "plain http"),
        ("http://127.0.0.1:80@evil.example/v1", "without a user name"),
        ("http://127.0.0.1:hunter2@localhost:8000", "without a user name"),
        ("http://localhost\\@evil.example", "without spaces"),
        ("https://east\n.example", "without spaces"),
        ("https://east:99999", "port"),
        ("https://east:abc", "port"),
        ("https://[::1", "host name"),
    ],
)
def test_a_service_s_address_leads_nowhere_else_and_holds_no_secret(address: str, words: str) -> None:
    with pytest.raises(ValueError, match=words) as refused:
        checked_endpoint(address)
    assert "hunter2" not in str(refused.value)
