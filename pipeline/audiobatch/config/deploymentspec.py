"""One `[[deployments]]` entry of a job file: a place where calls can go, with its quota, priority and price.

What an entry leaves out comes from the job: its provider, endpoint, API version, model, auth.
"""

from __future__ import annotations

import re
from decimal import Decimal
from ipaddress import ip_address
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

Provider = Literal["azure", "openai", "local"]


def as_decimal(value: object) -> object:
    """0.1 means 0.1: floats of a TOML file become the decimals that were written."""
    return Decimal(repr(value)) if isinstance(value, float) else value


Usd = Annotated[Decimal, BeforeValidator(as_decimal), Field(ge=0, allow_inf_nan=False)]


def checked_address(value: str | None) -> str | None:
    """A service address, without its last slash.

    Raises:
        ValueError: no https (or http to this machine), or with a secret in it.
    """
    if value is None:
        return None
    if re.search(r"[\s\x00-\x1f\x7f\\\\]", value):
        raise ValueError("give an address without blanks and backslashes")
    try:
        parts = urlsplit(value)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise ValueError("give an address with a host name, and a port from 0 to 65535 if any") from None
    if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc:
        raise ValueError("give an address that begins with https://, without a user name or key")
    if parts.query or parts.fragment or "?" in value or "#" in value:
        raise ValueError("give the address alone, without '?' or '#' and what follows")
    if parts.scheme == "http" and not _is_this_machine(host):
        raise ValueError("plain http goes only to this machine; give an https:// address")
    return value.rstrip("/")


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class PriceSpec(BaseModel):
    """What a deployment's tokens cost, in US dollars per million, in place of the price table's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    text_in: Usd
    text_out: Usd
    audio_in: Usd
    audio_out: Usd
    cached_in: Usd | None = None


class DeploymentSpec(BaseModel):
    """A deployment of the job's pool."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    deployment: str = Field(min_length=1, description="Deployment name (OpenAI: the model's)")
    name: str | None = Field(
        default=None,
        min_length=1,
        description="Its name in the manifest, where two have the same deployment name",
    )
    provider: Provider | None = Field(default=None, description="Where it is; default the job's provider")
    endpoint: str | None = Field(default=None, description="Service address; default the job's")
    api_version: str | None = Field(default=None, description="Azure: v1, or a dated version")
    model: str | None = Field(default=None, min_length=1, description="Model behind it; default the job's")
    auth: Literal["key", "entra"] | None = Field(default=None, description="Which credential to use")
    key_variable: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*$",
        description="Name of the environment variable that holds its key, where it is not the usual one",
    )
    rpm: int | None = Field(default=None, ge=1, description="Requests a minute that its quota allows")
    tpm: int | None = Field(default=None, ge=1, description="Tokens a minute that its quota allows")
    max_concurrency: int | None = Field(default=None, ge=1, le=1000, description="Calls in flight at once")
    priority: int = Field(
        default=0, description="Lower goes first; higher takes what the lower have no room for"
    )
    price: PriceSpec | None = Field(default=None, description="US dollars per million tokens")

    @property
    def label(self) -> str:
        """What it is called in the manifest, on the progress line, and in a table's `deployment` column."""
        return self.name or self.deployment

    @field_validator("endpoint")
    @classmethod
    def _address(cls, value: str | None) -> str | None:
        return checked_address(value)
