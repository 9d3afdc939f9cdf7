"""Where a job's values come from: flags, job file, environment, `.env`, defaults — the first that has one.

What the environment says of a job is read here alone. Names are the SDKs' own (`AZURE_OPENAI_ENDPOINT`,
`OPENAI_API_KEY`, …); ours begin with `AUDIOBATCH_`. Credentials come from here alone and never enter a `JobSpec`.
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
from audiobatch.config.jobspec import ON_MEANS_DEFAULT, DeploymentSpec, JobSpec, TurnSpec
from audiobatch.errors import ConfigError, register_secret

if TYPE_CHECKING:
    from collections.abc import Mapping

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
#: Any of these says that a keyless credential was set up on purpose.
_ENTRA_SIGNS = (
    "AZURE_CLIENT_SECRET",
    "AZURE_CLIENT_CERTIFICATE_PATH",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_TOKEN_CREDENTIALS",
    "IDENTITY_ENDPOINT",
    "MSI_ENDPOINT",
)
_PATH_FIELDS = ("inputs", "output", "ledger", "fields", "prices")
_TRUTH = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}
#: Values that could hold a secret where they are wrong: said to be wrong, never repeated.
_NEVER_SHOWN = frozenset({"ledger"})


#: Names that this process has from a `.env`: they are told from the shell's own when it is read again.
_from_dotenv: set[str] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The process's variables over those of a `.env` file in the working folder."""

    variables: Mapping[str, str]
    dotenv: frozenset[str] = frozenset()

    @classmethod
    def read(cls, folder: Path | None = None) -> Environment:
        """Read both; variables that only `.env` has are set in this process, for the credential chain."""
        from dotenv import dotenv_values

        values = dotenv_values((folder or Path.cwd()) / ".env")
        from_file = {name: value for name, value in values.items() if value and name not in os.environ}
        os.environ.update(from_file)
        _from_dotenv.update(from_file)
        here = {name for name in _from_dotenv if os.environ.get(name) == values.get(name)}
        return cls(variables={**from_file, **os.environ}, dotenv=frozenset(here))

    def get(self, name: str) -> str | None:
        return self.variables.get(name) or None

    def origin(self, name: str) -> str:
        return f".env ({name})" if name in self.dotenv else f"environment ({name})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A valid job, and for each of its fields where the value came from."""

    spec: JobSpec
    origins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credential:
    """How calls prove who they are. `key` is None for Entra ID. Never printed: the repr hides it."""

    kind: str
    key: str | None = field(default=None, repr=False)
    origin: str = ""


def resolve(
    flags: Mapping[str, Any], *, job_file: Path | None = None, environment: Environment | None = None
) -> Resolved:
    """The effective job.

    Args:
        flags: JobSpec fields given on the command line; None and empty tuples mean "not given".
        job_file: a TOML file with JobSpec's keys; its relative paths are relative to the file.

    Raises:
        ConfigError: naming where the value stands, the key, and what is allowed.
    """
    environment = environment or Environment.read()
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}

    def offer(found: Mapping[str, Any], origin: str | None = None) -> None:
        for name, value in found.items():
            if value is None or value == () or name in values:
                continue
            values[name] = value
            flag = "--" + name.removesuffix("_s").replace("_", "-")
            origins[name] = origin or ("argument" if name == "inputs" else f"flag {flag}")

    offer(flags)
    if job_file is not None:
        in_file = read_job_file(job_file)
        if "prompt" in values or "turns" in values:
            in_file = {name: value for name, value in in_file.items() if name not in ("prompt", "turns")}
        offer(in_file, str(job_file))
    provider = values.get("provider") or environment.get("AUDIOBATCH_PROVIDER") or "azure"
    for name in JobSpec.model_fields:
        if name == "deployment" and values.get("deployments"):
            continue  # the entries are all there are, whatever the environment names
        for variable in (_SDK_NAMES.get(provider, {}).get(name), f"AUDIOBATCH_{name.upper()}"):
            if variable and (text := environment.get(variable)):
                offer({name: _from_text(name, text)}, environment.origin(variable))
    try:
        spec = JobSpec.model_validate(values)
    except ValidationError as failed:
        raise ConfigError(_explain(failed, origins)) from None
    return Resolved(spec=spec, origins={name: origins.get(name, "default") for name in JobSpec.model_fields})


def _from_text(name: str, text: str) -> Any:
    """A variable's text as a job file has it: words for yes and no become truth values where a field has them."""
    field = JobSpec.model_fields[name]
    has_truth_values = field.annotation is bool or name in ON_MEANS_DEFAULT
    return _TRUTH.get(text.strip().lower(), text) if has_truth_values else text


def read_job_file(path: Path) -> dict[str, Any]:
    """The keys of a job file, paths made relative to the working folder.

    Raises:
        ConfigError: unreadable, not TOML, or with a key that does not exist.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as failed:
        raise ConfigError(f"job file {path}: cannot be read ({failed.strerror})") from failed
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as failed:
        raise ConfigError(f"job file {path}: not valid TOML: {failed}") from failed
    for key in values:
        _known(key, JobSpec.model_fields, f"job file {path}")
    for name, fields in (("turns", TurnSpec.model_fields), ("deployments", DeploymentSpec.model_fields)):
        entries = values.get(name)
        for number, entry in enumerate(entries if isinstance(entries, list) else (), 1):
            for key in entry if isinstance(entry, dict) else ():
                _known(key, fields, f"job file {path}: [[{name}]] number {number}")
    return values | {name: _paths_beside(path, values[name]) for name in _PATH_FIELDS if name in values}


def _paths_beside(job_file: Path, given: Any) -> Any:
    """Paths of a job file as they are found from here; what is no path is left for the schema to refuse."""
    if isinstance(given, list):
        return [_paths_beside(job_file, one) for one in given]
    return _beside(job_file, given) if isinstance(given, str) else given


def _beside(job_file: Path, path: str) -> str:
    if path == "-" or "://" in path:
        return path
    found = job_file.parent / path
    if ".." not in found.parts:
        return str(found)
    whole, here = found.resolve(), Path.cwd()
    return str(whole.relative_to(here) if whole.is_relative_to(here) else whole)


def _known(key: str, allowed: Mapping[str, object], where: str) -> None:
    if key in allowed:
        return
    near = difflib.get_close_matches(key.replace("-", "_"), allowed, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(sorted(allowed))}."
    secret = " Credentials belong in the environment." if "key" in key or "token" in key else ""
    raise ConfigError(f"{where}: unknown key {key!r}{hint}{secret}")


def _explain(failed: ValidationError, origins: Mapping[str, str]) -> str:
    """One line for each wrong value: where it stands, what it is, what is allowed."""
    lines = []
    for error in failed.errors(include_url=False):
        place = [str(part) for part in error["loc"]]
        key = ".".join(place)
        message = error["msg"].removeprefix("Value error, ")
        message = message[0].lower() + message[1:]
        if place:
            shown = (
                ""
                if error["type"] == "missing" or place[0] in _NEVER_SHOWN
                else f" = {masked(error['input'])!r}"
            )
            lines.append(f"{origins.get(place[0], 'settings')}: {key}{shown}: {message}")
        else:
            lines.append(message)
    return "\n".join(lines)


def credential(
    spec: JobSpec, environment: Environment | None = None, *, key_variable: str | None = None
) -> Credential:
    """Which credential the job's calls use.

    Args:
        spec: the job, or one entry of its pool as a job.
        environment: read by default.
        key_variable: the variable that holds the key, where it is not the usual one.

    Raises:
        ConfigError: none can be used, or two are there and `auth` does not say which.
    """
    environment = environment or Environment.read()
    name = key_variable or _KEY_NAMES[spec.provider if spec.provider != "local" else "azure"]
    key = _usable_key(name, environment.get(name))
    if key_variable and not key:
        raise ConfigError(f"{key_variable} is not set; the job file names it as the variable of a key")
    if spec.provider == "openai":
        if spec.auth == "entra":
            raise ConfigError("--auth entra is for Azure; OpenAI takes OPENAI_API_KEY")
        if not key:
            raise ConfigError(_nothing_configured(spec))
        return Credential(kind="key", key=key, origin=environment.origin(name))
    signs = [sign for sign in _ENTRA_SIGNS if environment.get(sign)]
    if spec.auth is None and key and signs:
        raise ConfigError(
            f"both a key ({name}) and a keyless credential ({', '.join(signs)}) are set up; "
            "say which with --auth key or --auth entra"
        )
    if spec.auth == "key" and not key:
        raise ConfigError(f"--auth key needs {name}")
    if key and spec.auth != "entra":
        return Credential(kind="key", key=key, origin=environment.origin(name))
    return Credential(kind="entra", origin="DefaultAzureCredential (az login, managed identity, …)")


def _usable_key(name: str, text: str | None) -> str | None:
    """The key without what copying left around it; from now on no message repeats it.

    Raises:
        ConfigError: no HTTP header can carry it.
    """
    key = (text or "").strip()
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(
            f"{name} holds a character that no key has (a blank, an invisible or a typographic one); copy it again"
        )
    register_secret(key)
    return key or None


def check_service(spec: JobSpec) -> None:
    """That a job names where its calls go.

    Raises:
        ConfigError: one message that says all that is missing, and how to try without an account.
    """
    if spec.deployments:
        for one in spec.deployments:
            azure = (one.provider or spec.provider) == "azure"
            endpoint = one.endpoint or (spec.endpoint if spec.provider == "azure" else None)
            if azure and not endpoint:
                raise ConfigError(
                    f"[[deployments]] {one.label}: needs an endpoint (or set AZURE_OPENAI_ENDPOINT for all)"
                )
            _check_is_resource(endpoint if azure else None)
        return
    if spec.provider == "azure":
        if not (spec.endpoint and spec.deployment):
            raise ConfigError(_nothing_configured(spec))
        _check_is_resource(spec.endpoint)


def _check_is_resource(endpoint: str | None) -> None:
    """An Azure endpoint is the resource's address alone; portals show it with the API's path behind it, too."""
    resource, path, _ = (endpoint or "").partition("/openai")
    if path:
        raise ConfigError(
            f"the endpoint is the resource's address, without /openai and what follows: {resource}"
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
