"""Places by address: `az://container/prefix`, `s3://bucket/prefix`, `memory://…`, or a path of this machine.

An address never carries a secret: user names, passwords, keys and signatures are refused, and what is shown of a
refused address is only its beginning. Credentials are the store's own, from the environment.

A job's ledger has an address too: a file of this machine (SQLite), or a PostgreSQL database that several share. It
is written to `job.json`, shown by whatever runs the job, and logged. PostgreSQL's own places for passwords are
PGPASSWORD, ~/.pgpass, and a service file (`postgresql+psycopg:///?service=NAME`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import parse_qsl, urlsplit
from urllib.request import url2pathname

#: What an address may begin with, as its store is called in fsspec.
PROTOCOLS: Final = {"az": "az", "abfs": "az", "s3": "s3", "memory": "memory"}
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


@dataclass(frozen=True, slots=True)
class Address:
    """A place in an object store: `path` is the container or bucket, and the names below it."""

    protocol: str
    path: str

    def __str__(self) -> str:
        return f"{self.protocol}://{self.path}"

    def __truediv__(self, name: str) -> Address:
        return Address(self.protocol, f"{self.path}/{name}")

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> Address:
        return Address(self.protocol, self.path.rpartition("/")[0])

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.path).suffix

    def is_within(self, other: Address) -> bool:
        """Whether it is the other, or below it."""
        return self.protocol == other.protocol and f"{self.path}/".startswith(f"{other.path}/")


Place = Path | Address


def has_scheme(text: str) -> bool:
    """Whether it is written as an address; `file://` counts, `C:` does not."""
    return _SCHEME.match(text) is not None


def is_remote(text: str) -> bool:
    """Whether it names a place in a store, and not one on this machine."""
    found = _SCHEME.match(text)
    return found is not None and found[1].lower() != "file"


def place_of(text: str) -> Place:
    """The place that a path, a `file://` address or a store's address names.

    Raises:
        ValueError: an unknown kind of address, one that carries a secret, or one that names no container. The
            message has nothing of the address beyond what it begins with.
    """
    found = _SCHEME.match(text)
    if found is None:
        return Path(text)
    scheme, rest = found[1].lower(), text[found.end() :]
    if scheme == "file":
        return _local(rest)
    if scheme not in PROTOCOLS:
        raise ValueError(f"{scheme}:// is no store that is known: give az://, s3://, file:// or a path")
    if "?" in rest:
        raise ValueError(
            f"the {scheme}:// address has a query, where signatures and keys stand: leave it out. {_FROM}"
        )
    container = rest.lstrip("/").partition("/")[0]
    if "@" in container:
        raise ValueError(
            f"the {scheme}:// address carries a user name, key or account: give {scheme}://container/prefix. "
            f"{_FROM}"
        )
    parts = rest.strip("/").split("/")
    if not container or any(part in {"", ".", ".."} for part in parts):
        raise ValueError(f"give {scheme}://container/prefix, without empty parts, '.' or '..'")
    return Address(PROTOCOLS[scheme], "/".join(parts))


_FROM: Final = (
    "Credentials come from the environment alone (AZURE_STORAGE_…, AWS_…, `az login`, a managed identity)"
)


def absolute(text: str) -> str:
    """The same place, whatever the working folder is.

    Raises:
        ValueError: as `place_of`.
    """
    place = place_of(text)
    return str(place if isinstance(place, Address) else place.resolve())


def checked(text: str) -> str:
    """The text, if it is a path or an address that can be used.

    Raises:
        ValueError: as `place_of`.
    """
    place_of(text)
    return text


def masked(value: object) -> object:
    """A setting's value as it may be shown: of addresses, no user name and no query."""
    if isinstance(value, (tuple, list)):
        return type(value)(masked(one) for one in value)
    if not isinstance(value, str) or not has_scheme(value):
        return value
    scheme, _, rest = value.partition("://")
    # A store's object may have an @ in its name; in a service's address it ends a password, whatever that holds.
    user = rest if scheme.lower() in ("http", "https") else rest.partition("/")[0]
    hidden = user.rfind("@") + 1
    shown, query, _ = rest[hidden:].partition("?")
    return f"{scheme}://{'…@' if hidden else ''}{shown}{'?…' if query else ''}"


def _local(rest: str) -> Path:
    host, slash, path = rest.partition("/")
    if not slash or host not in ("", "localhost"):
        raise ValueError("give file:///path, with three slashes")
    return Path(url2pathname("/" + path))


POSTGRESQL: Final = "postgresql+psycopg"
#: Ways to write the same; the driver is ours to choose.
_SPELLINGS: Final = frozenset({POSTGRESQL, "postgresql", "postgres"})
_SECRET_OPTIONS: Final = frozenset({"password", "sslpassword", "oauth_client_secret"})
_KINDS: Final = "give the path of a file, or the address of a PostgreSQL database: postgresql+psycopg://USER@HOST/DATABASE"
_HINT: Final = (
    "a password in a ledger's address would be kept in job.json and shown; leave it out, and set PGPASSWORD, "
    "or write it into ~/.pgpass or a service file (postgresql+psycopg:///?service=NAME)"
)


def is_database(ledger: str) -> bool:
    """Whether it is the address of a database, not a file of this machine."""
    return "://" in ledger


def checked_ledger(value: str | None) -> str | None:
    """A ledger's address as it is kept: a path as given, a database's with the driver's name.

    Raises:
        ValueError: it is none that a ledger can have, or holds a secret; the message does not repeat it.
    """
    if value is None or not is_database(value):
        return value or None
    try:
        parts = urlsplit(value)
        password, _ = parts.password, parts.port
    except ValueError:
        raise ValueError(_KINDS) from None
    if parts.scheme == "sqlite":
        raise ValueError("give an SQLite ledger as the path of its file")
    if parts.scheme not in _SPELLINGS:
        raise ValueError(_KINDS)
    options = {name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    if password is not None or options & _SECRET_OPTIONS:
        raise ValueError(_HINT)
    if not parts.path.strip("/") and "service" not in options and "dbname" not in options:
        raise ValueError("name the database: postgresql+psycopg://USER@HOST/DATABASE")
    return POSTGRESQL + value[value.index("://") :]
