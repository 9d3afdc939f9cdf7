"""Resolve a job's settings from flags, job file, environment, `.env` and defaults, in this order of precedence.

This module alone reads the job's environment variables. They have the SDKs' own names (`AZURE_OPENAI_ENDPOINT`,
`OPENAI_API_KEY`, …) or begin with `AUDIOBATCH_`. Credentials are read only here and are never part of a `JobSpec`.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from audiobatch.address import masked
from audiobatch.config.jobspec import TRUE_MEANS_DEFAULT, DeploymentSpec, JobSpec, TurnSpec
from audiobatch.errors import ConfigError, register_secret

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: The SDKs' own names, by provider.
_SDK_NAMES: dict[str, dict[str, str]] = {
    "azure": {
        "endpoint": "AZURE_OPENAI_ENDPOINT",
        "api_version": "OPENAI_API_VERSION",
        "deployment": "AZURE_OPENAI_DEPLOYMENT_NAME",
    },
    "openai": {"endpoint": "OPENAI_BASE_URL"},
    "local": {},
}
_KEY_NAMES = {"azure": "AZURE_OPENAI_API_KEY", "openai": "OPENAI_API_KEY"}
#: Variables that show that a keyless credential was set up on purpose.
_ENTRA_SIGNS = (
    "AZURE_CLIENT_SECRET",
    "AZURE_CLIENT_CERTIFICATE_PATH",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_TOKEN_CREDENTIALS",
    "IDENTITY_ENDPOINT",
    "MSI_ENDPOINT",
)
_PATH_FIELDS = ("inputs", "output", "ledger", "fields", "prices")
_BOOLEANS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}
#: Fields whose wrong value could contain a secret: messages do not repeat it.
_NEVER_SHOWN = frozenset({"ledger"})


#: Variables that this process has from a `.env`, not from the shell; the file may be read several times.
_from_dotenv: set[str] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The process's variables, and those of a `.env` file in the working folder that the process does not have."""

    variables: Mapping[str, str]
    dotenv: frozenset[str] = frozenset()

    @classmethod
    def read(cls, folder: Path | None = None) -> Environment:
        """Read both, and set the variables that only `.env` has in this process, for the credential chain."""
        from dotenv import dotenv_values

        values = dotenv_values((folder or Path.cwd()) / ".env")
        from_file = {name: value for name, value in values.items() if value and name not in os.environ}
        os.environ.update(from_file)
        _from_dotenv.update(from_file)
        unchanged = {name for name in _from_dotenv if os.environ.get(name) == values.get(name)}
        return cls(variables={**from_file, **os.environ}, dotenv=frozenset(unchanged))

    def get(self, name: str) -> str | None:
        """Return a variable's value; None where it is missing or empty."""
        return self.variables.get(name) or None

    def origin(self, name: str) -> str:
        """Say where a variable comes from."""
        return f".env ({name})" if name in self.dotenv else f"environment ({name})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A valid job, and the origin of the value of each field."""

    spec: JobSpec
    origins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """The credential of calls; `key` is None for Entra ID, and never part of the repr."""

    kind: str
    key: str | None = field(default=None, repr=False)
    origin: str = ""


def resolve(
    flags: Mapping[str, Any], *, job_file: Path | None = None, environment: Environment | None = None
) -> Resolved:
    """Resolve the effective job.

    Args:
        flags: JobSpec fields given on the command line; None and empty tuples mean "not given".
        job_file: a TOML file with JobSpec's keys; its relative paths are relative to the file.
        environment: read by default.

    Raises:
        ConfigError: a value is not allowed; the message names its origin, its key and what is allowed.
    """
    environment = environment or Environment.read()
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def offer(name: str, value: Any, origin: str) -> None:
        if value is not None and value != () and name not in values:
            values[name] = value
            origins[name] = origin

    for name, value in flags.items():
        flag = "--" + name.removesuffix("_s").replace("_", "-")
        offer(name, value, "argument" if name == "inputs" else f"flag {flag}")
    if job_file is not None:
        in_file = read_job_file(job_file)
        if "prompt" in values or "turns" in values:
            in_file = {name: value for name, value in in_file.items() if name not in ("prompt", "turns")}
        for name, value in in_file.items():
            offer(name, value, str(job_file))
    provider = values.get("provider") or environment.get("AUDIOBATCH_PROVIDER") or "azure"
    for name, value, origin in _in_environment(environment, provider):
        # Where there are [[deployments]], they are all, whatever the environment names.
        if name != "deployment" or not values.get("deployments"):
            offer(name, value, origin)
    try:
        spec = JobSpec.model_validate(values)
    except ValidationError as failed:
        raise ConfigError(_explain(failed, origins)) from None
    return Resolved(spec=spec, origins={name: origins.get(name, "default") for name in JobSpec.model_fields})


def _in_environment(environment: Environment, provider: str) -> Iterator[tuple[str, Any, str]]:
    """Yield field, value and origin of each variable of a job; the SDKs' own names first."""
    for name in JobSpec.model_fields:
        for variable in (_SDK_NAMES.get(provider, {}).get(name), f"AUDIOBATCH_{name.upper()}"):
            if variable and (text := environment.get(variable)):
                yield name, _from_text(name, text), environment.origin(variable)


def _from_text(name: str, text: str) -> Any:
    """Return a variable's text as a job file has it: `yes`, `no`, … become booleans in fields that accept them."""
    is_boolean = JobSpec.model_fields[name].annotation is bool or name in TRUE_MEANS_DEFAULT
    return _BOOLEANS.get(text.strip().lower(), text) if is_boolean else text


def read_job_file(path: Path) -> dict[str, Any]:
    """Read a job file; its paths become relative to the working folder.

    Raises:
        ConfigError: it cannot be read, is not TOML, or has an unknown key.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as failed:
        raise ConfigError(f"job file {path}: cannot be read ({failed.strerror})") from failed
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failed:
        raise ConfigError(f"job file {path}: not valid TOML: {failed}") from failed
    for key in values:
        _check_key(key, JobSpec.model_fields, f"job file {path}")
    for name, fields in (("turns", TurnSpec.model_fields), ("deployments", DeploymentSpec.model_fields)):
        entries = values.get(name)
        for number, entry in enumerate(entries if isinstance(entries, list) else (), 1):
            for key in entry if isinstance(entry, dict) else ():
                _check_key(key, fields, f"job file {path}: [[{name}]] number {number}")
    return values | {name: _paths_beside(path, values[name]) for name in _PATH_FIELDS if name in values}


def _paths_beside(job_file: Path, given: Any) -> Any:
    """Return a job file's paths relative to the working folder; the schema refuses what is not a path."""
    if isinstance(given, list):
        return [_paths_beside(job_file, path) for path in given]
    return _beside(job_file, given) if isinstance(given, str) else given


def _beside(job_file: Path, path: str) -> str:
    if path == "-" or "://" in path:
        return path
    joined = job_file.parent / path
    if ".." not in joined.parts:
        return str(joined)
    absolute, folder = joined.resolve(), Path.cwd()
    return str(absolute.relative_to(folder) if absolute.is_relative_to(folder) else absolute)


def _check_key(key: str, allowed: Mapping[str, object], where: str) -> None:
    if key in allowed:
        return
    similar = difflib.get_close_matches(key.replace("-", "_"), allowed, n=1)
    hint = f"; did you mean {similar[0]!r}?" if similar else f"; known keys: {', '.join(sorted(allowed))}."
    secret = " Credentials belong in the environment." if "key" in key or "token" in key else ""
    raise ConfigError(f"{where}: unknown key {key!r}{hint}{secret}")


def _explain(failed: ValidationError, origins: Mapping[str, str]) -> str:
    """Return a line for each wrong value: its origin, its key, its value, what is allowed."""
    lines = []
    for error in failed.errors(include_url=False):
        keys = [str(part) for part in error["loc"]]
        message = error["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        if keys:
            is_hidden = error["type"] == "missing" or keys[0] in _NEVER_SHOWN
            shown = "" if is_hidden else f" = {masked(error['input'])!r}"
            lines.append(f"{origins.get(keys[0], 'settings')}: {'.'.join(keys)}{shown}: {message}")
        else:
            lines.append(message)
    return "\n".join(lines)


def credential(
    spec: JobSpec, environment: Environment | None = None, *, key_variable: str | None = None
) -> Credential:
    """Return the credential of the job's calls.

    Args:
        spec: the job, or a `[[deployments]]` entry as a job.
        environment: read by default.
        key_variable: the variable of the key, if not the usual one.

    Raises:
        ConfigError: no credential is set up, or two are and `auth` does not say which.
    """
    environment = environment or Environment.read()
    name = key_variable or _KEY_NAMES[spec.provider if spec.provider != "local" else "azure"]
    key = _usable_key(name, environment.get(name))
    if key_variable and not key:
        raise ConfigError(
            f"{key_variable} is not set; the job file names it as the variable of a deployment's key"
        )
    if spec.provider == "openai":
        if spec.auth == "entra":
            raise ConfigError("--auth entra is for Azure; for OpenAI, set OPENAI_API_KEY")
        if not key:
            raise ConfigError(_nothing_configured(spec))
        return Credential(kind="key", key=key, origin=environment.origin(name))
    signs = [sign for sign in _ENTRA_SIGNS if environment.get(sign)]
    if spec.auth is None and key and signs:
        raise ConfigError(
            f"both a key ({name}) and a keyless credential ({', '.join(signs)}) are set up; "
            "choose one with --auth key or --auth entra"
        )
    if spec.auth == "key" and not key:
        raise ConfigError(f"--auth key needs {name}")
    if key and spec.auth != "entra":
        return Credential(kind="key", key=key, origin=environment.origin(name))
    return Credential(kind="entra", origin="DefaultAzureCredential (az login, managed identity, …)")


def _usable_key(name: str, text: str | None) -> str | None:
    """Return a key without white space around it; messages never repeat it from now on.

    Raises:
        ConfigError: it cannot be sent in an HTTP header.
    """
    key = (text or "").strip()
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(
            f"{name} has a character that no key has (a space, an invisible or a typographic one); copy it again"
        )
    register_secret(key)
    return key or None


def check_service(spec: JobSpec) -> None:
    """Check that a job names the service that its calls go to.

    Raises:
        ConfigError: it does not; the message says what is missing, and how to try without an account.
    """
    if spec.deployments:
        for deployment in spec.deployments:
            is_azure = (deployment.provider or spec.provider) == "azure"
            endpoint = deployment.endpoint or (spec.endpoint if spec.provider == "azure" else None)
            if is_azure and not endpoint:
                raise ConfigError(
                    f"[[deployments]] {deployment.label}: needs an endpoint (or set AZURE_OPENAI_ENDPOINT for all)"
                )
            _check_is_resource(endpoint if is_azure else None)
        return
    if spec.provider == "azure":
        if not (spec.endpoint and spec.deployment):
            raise ConfigError(_nothing_configured(spec))
        _check_is_resource(spec.endpoint)


def _check_is_resource(endpoint: str | None) -> None:
    """Check that an Azure endpoint is the resource's address, without the API's path that portals show."""
    resource, path, _ = (endpoint or "").partition("/openai")
    if path:
        raise ConfigError(
            f"the endpoint must be the resource's address, without /openai and what follows: {resource}"
        )


def _nothing_configured(spec: JobSpec) -> str:
    if spec.provider == "openai":
        return (
            "OpenAI needs OPENAI_API_KEY in the environment (and OPENAI_BASE_URL for a compatible server).\n"
            "To try without an account: --provider local"
        )
    missing = [
        text
        for text, given in (
            ("  AZURE_OPENAI_ENDPOINT           https://<resource>.openai.azure.com", spec.endpoint),
            ("  AZURE_OPENAI_DEPLOYMENT_NAME    or --deployment <name>", spec.deployment),
        )
        if not given
    ]
    return "\n".join(
        [
            "Azure OpenAI is not set up: please set",
            *missing,
            "and sign in with `az login` (recommended), or set AZURE_OPENAI_API_KEY.",
            "For OpenAI: --provider openai with OPENAI_API_KEY. To try without an account: --provider local",
        ]
    )
