"""Parse locations: `az://container/prefix`, `s3://bucket/prefix`, `memory://…`, or a path on this machine.

An address never contains a secret: user names, passwords, keys and signatures are refused, and a message shows only
the beginning of a refused address. Credentials are the store's own, from the environment.

A job's ledger has an address too: a file on this machine (SQLite), or a PostgreSQL database that several machines
share. It is written to `job.json`, shown and logged. A password for PostgreSQL belongs in PGPASSWORD, ~/.pgpass or
a service file (`postgresql+psycopg:///?service=NAME`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final
from urllib.parse import parse_qsl, urlsplit
from urllib.request import url2pathname

#: Schemes of addresses, with their protocol in fsspec.
PROTOCOLS: Final = {"az": "az", "abfs": "az", "s3": "s3", "memory": "memory"}
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


@dataclass(frozen=True, slots=True)
class Address:
    """A location in an object store; `path` begins with the container or bucket."""

    protocol: str
    path: str

    def __str__(self) -> str:
        return f"{self.protocol}://{self.path}"

    def __truediv__(self, name: str) -> Address:
        return Address(self.protocol, f"{self.path}/{name}")

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition("/")[2]

    @property
    def parent(self) -> Address:
        """The address of the folder above."""
        return Address(self.protocol, self.path.rpartition("/")[0])

    @property
    def suffix(self) -> str:
        """The suffix of the name, with its dot."""
        return PurePosixPath(self.path).suffix

    def is_within(self, other: Address) -> bool:
        """Whether this is the other address, or below it."""
        return self.protocol == other.protocol and f"{self.path}/".startswith(f"{other.path}/")


#: A path on this machine, or an address in a store.
Location = Path | Address


def has_scheme(text: str) -> bool:
    """Whether a text begins with a scheme; `file://` is one, `C:` is not."""
    return _SCHEME.match(text) is not None


def is_remote(text: str) -> bool:
    """Whether a text is the address of a store, and not a path on this machine."""
    match = _SCHEME.match(text)
    return match is not None and match[1].lower() != "file"


def parse_location(text: str) -> Location:
    """Parse a path, a `file://` address or a store's address.

    Raises:
        ValueError: the address has an unknown scheme, contains a secret, or names no container. The message shows
        only
            the beginning of the address.
    """
    match = _SCHEME.match(text)
    if match is None:
        return Path(text)
    scheme, rest = match[1].lower(), text[match.end() :]
    if scheme == "file":
        return _local_path(rest)
    if scheme not in PROTOCOLS:
        raise ValueError(f"{scheme}:// is not a known store: give az://, s3://, file:// or a path")
    if "?" in rest:
        raise ValueError(
            f"the {scheme}:// address has a query, which may have a signature or key: leave it out. {_CREDENTIALS}"
        )
    container = rest.lstrip("/").partition("/")[0]
    if "@" in container:
        raise ValueError(
            f"the {scheme}:// address has a user name, key or account: give {scheme}://container/prefix. "
            f"{_CREDENTIALS}"
        )
    parts = rest.strip("/").split("/")
    if not container or any(part in {"", ".", ".."} for part in parts):
        raise ValueError(f"give {scheme}://container/prefix, without empty parts, '.' or '..'")
    return Address(PROTOCOLS[scheme], "/".join(parts))


_CREDENTIALS: Final = (
    "Credentials come only from the environment (AZURE_STORAGE_…, AWS_…, `az login`, a managed identity)"
)


def absolute(text: str) -> str:
    """Return a location that does not depend on the working folder.

    Raises:
        ValueError: as `parse_location`.
    """
    location = parse_location(text)
    return str(location if isinstance(location, Address) else location.resolve())


def checked(text: str) -> str:
    """Return the text, if it is a valid path or address.

    Raises:
        ValueError: as `parse_location`.
    """
    parse_location(text)
    return text


def masked(value: object) -> object:
    """Return a setting's value as it may be shown: an address without user name and query."""
    if isinstance(value, (tuple, list)):
        return type(value)(masked(element) for element in value)
    if not isinstance(value, str) or not has_scheme(value):
        return value
    scheme, _, rest = value.partition("://")
    # An object's name may have an @; in a service's address, an @ ends a password, which may contain any character.
    user = rest if scheme.lower() in ("http", "https") else rest.partition("/")[0]
    hidden = user.rfind("@") + 1
    shown, query, _ = rest[hidden:].partition("?")
    return f"{scheme}://{'…@' if hidden else ''}{shown}{'?…' if query else ''}"


def _local_path(rest: str) -> Path:
    host, slash, path = rest.partition("/")
    if not slash or host not in ("", "localhost"):
        raise ValueError("give file:///path, with three slashes")
    return Path(url2pathname("/" + path))


POSTGRESQL: Final = "postgresql+psycopg"
#: Accepted schemes; audiobatch chooses the driver.
_POSTGRESQL_SCHEMES: Final = frozenset({POSTGRESQL, "postgresql", "postgres"})
_SECRET_OPTIONS: Final = frozenset({"password", "sslpassword", "oauth_client_secret"})
_EXPECTED: Final = "give the path of a file, or the address of a PostgreSQL database: postgresql+psycopg://USER@HOST/DATABASE"
_LEAVE_IT_OUT: Final = (
    "a password in a ledger's address would be stored in job.json and shown; leave it out, and set PGPASSWORD, "
    "or write it into ~/.pgpass or a service file (postgresql+psycopg:///?service=NAME)"
)


def is_database(ledger: str) -> bool:
    """Whether a ledger's address names a database, and not a file on this machine."""
    return "://" in ledger


def checked_ledger(value: str | None) -> str | None:
    """Return a ledger's address as it is stored: a path as given, a database's with the driver's name.

    Raises:
        ValueError: it is not a ledger's address, or contains a secret; the message does not repeat it.
    """
    if value is None or not is_database(value):
        return value or None
    try:
        parts = urlsplit(value)
        password, _ = parts.password, parts.port
    except ValueError:
        raise ValueError(_EXPECTED) from None
    if parts.scheme == "sqlite":
        raise ValueError("give an SQLite ledger as the path of its file")
    if parts.scheme not in _POSTGRESQL_SCHEMES:
        raise ValueError(_EXPECTED)
    options = {name.lower() for name, _ in parse_qsl(parts.query, keep_blank_values=True)}
    if password is not None or options & _SECRET_OPTIONS:
        raise ValueError(_LEAVE_IT_OUT)
    if not parts.path.strip("/") and "service" not in options and "dbname" not in options:
        raise ValueError("name the database: postgresql+psycopg://USER@HOST/DATABASE")
    return POSTGRESQL + value[value.index("://") :]
