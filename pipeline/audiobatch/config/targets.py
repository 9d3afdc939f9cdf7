"""Resolve where a job's calls can go: each deployment with its endpoint, credential and price.

A job without `[[deployments]]` has one target of its own, and one for each deployment that rows of its table name,
which serves only those rows.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from audiobatch.config import settings
from audiobatch.config.prices import Price, price_of, total_usd
from audiobatch.config.transcription_rules import transcription_models
from audiobatch.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from audiobatch.config.jobspec import DeploymentSpec, JobSpec, Provider
    from audiobatch.model import Reply, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A deployment with its endpoint and credential.

    Attributes:
        name: its name in the manifest and on the progress line.
        credential: None for the local emulator, which has its own key.
        price: None where it is not known.
        transcription_model: transcribes input audio in Realtime sessions, and is billed beside the reply.
        transcription_price: None where it is not known.
        transcribes: it transcribes audio, and makes no replies.
        named_only: it serves only items that name it, and is not part of the job's pool.
    """

    name: str
    deployment: str
    provider: Provider
    endpoint: str | None
    api_version: str
    model: str
    credential: settings.Credential | None
    price: Price | None
    transcription_model: str | None = None
    transcription_price: Price | None = None
    rpm: int | None = None
    tpm: int | None = None
    max_concurrency: int | None = None
    priority: int = 0
    transcribes: bool = False
    named_only: bool = False

    def cost_usd(self, usage: Usage | None) -> Decimal | None:
        """Return the cost of a reply; None where the price or the usage is not known."""
        return None if self.price is None or usage is None else self.price.cost_usd(usage)

    def transcription_usd(self, usage: Usage | None) -> Decimal | None:
        """Return the cost of a session's transcript; 0 where there is none, None where its price is not known."""
        if usage is None:
            return Decimal(0)
        return None if self.transcription_price is None else self.transcription_price.cost_usd(usage)

    def reply_usd(self, reply: Reply) -> Decimal | None:
        """Return the cost of a call with its session's transcript; None where it is not known."""
        return total_usd((self.cost_usd(reply.usage), self.transcription_usd(reply.input_usage)))

    def settings(self, spec: JobSpec) -> JobSpec:
        """Return the job with this as its only deployment."""
        own = {
            name: getattr(self, name)
            for name in ("provider", "endpoint", "api_version", "deployment", "model")
        }
        return spec.model_copy(update={**own, "deployments": ()})


def targets_of(
    spec: JobSpec,
    named_by_rows: Iterable[str] = (),
    environment: settings.Environment | None = None,
    *,
    with_credentials: bool = True,
) -> tuple[Target, ...]:
    """Return the job's targets, in order of priority.

    Args:
        spec: the job.
        named_by_rows: deployments that rows of a table name.
        environment: the variables with credentials; the process's by default.
        with_credentials: whether to look for credentials; a plan needs none.

    Raises:
        ConfigError: a credential is missing, or rows name a deployment that the job does not have.
    """
    environment = environment or settings.Environment.read()
    if spec.deployments:
        targets = [
            _target_of(spec, deployment, environment, with_credentials) for deployment in spec.deployments
        ]
        return with_named(spec, tuple(sorted(targets, key=lambda target: target.priority)), named_by_rows)
    name = spec.deployment or spec.model
    own = Target(
        name=name,
        deployment=name,
        provider=spec.provider,
        endpoint=spec.endpoint,
        api_version=spec.api_version,
        model=spec.model,
        credential=_credential(spec, environment, None) if with_credentials else None,
        price=price_of(spec.model, spec.provider, prices=spec.prices),
        **_transcription(spec, spec.provider),
        rpm=spec.rpm,
        tpm=spec.tpm,
        max_concurrency=spec.max_concurrency,
    )
    return with_named(spec, (own,), named_by_rows)


def with_named(
    spec: JobSpec, targets: tuple[Target, ...], named_by_rows: Iterable[str]
) -> tuple[Target, ...]:
    """Add a target for each deployment that rows of a table name; it serves only those rows.

    Args:
        spec: the job.
        targets: the job's own targets, in order of priority.
        named_by_rows: names of deployments.

    Raises:
        ConfigError: rows name a deployment that is not one of the job's `[[deployments]]`.
    """
    if spec.deployments:
        known = {target.name for target in targets if not target.transcribes}
        if unknown := sorted(set(named_by_rows) - known):
            raise ConfigError(
                f"rows name deployment {unknown[0]!r}, which is not one of the [[deployments]]: "
                f"{', '.join(sorted(known))}"
            )
        return targets
    own = targets[0]
    others = sorted(set(named_by_rows) - {own.name})
    return (
        *targets,
        *(replace(own, name=name, deployment=name, priority=1, named_only=True) for name in others),
    )


def transcription_targets(spec: JobSpec, base: Target) -> tuple[Target, ...]:
    """Return the targets that transcribe: deployments of the same resource, named by `transcription_models`."""
    return tuple(
        replace(
            base,
            name=model,
            deployment=model,
            model=model,
            price=price_of(model, base.provider, prices=spec.prices),
            transcription_model=None,
            transcribes=True,
            named_only=True,
        )
        for model in transcription_models(spec)
    )


def _target_of(
    spec: JobSpec, deployment: DeploymentSpec, environment: settings.Environment, with_credentials: bool
) -> Target:
    provider = deployment.provider or spec.provider
    model = deployment.model or spec.model
    as_job = spec.model_copy(update={"provider": provider, "auth": deployment.auth or spec.auth})
    credential = _credential(as_job, environment, deployment.key_variable) if with_credentials else None
    own_price = Price(**deployment.price.model_dump()) if deployment.price else None
    job_concurrency = spec.max_concurrency if len(spec.deployments) == 1 else None
    return Target(
        name=deployment.label,
        deployment=deployment.deployment,
        provider=provider,
        endpoint=deployment.endpoint or (spec.endpoint if provider == spec.provider else None),
        api_version=deployment.api_version or spec.api_version,
        model=model,
        credential=credential,
        price=own_price or price_of(model, provider, prices=spec.prices),
        **_transcription(spec, provider),
        rpm=deployment.rpm,
        tpm=deployment.tpm,
        max_concurrency=deployment.max_concurrency or job_concurrency,
        priority=deployment.priority,
    )


def _transcription(spec: JobSpec, provider: str) -> dict[str, Any]:
    model = spec.transcription_model
    price = price_of(model, provider, prices=spec.prices) if model else None
    return {"transcription_model": model, "transcription_price": price}


def _credential(
    spec: JobSpec, environment: settings.Environment, key_variable: str | None
) -> settings.Credential | None:
    if spec.provider == "local":
        return None
    return settings.credential(spec, environment, key_variable=key_variable)


def check_prices(spec: JobSpec, targets: Iterable[Target]) -> None:
    """Check that all prices are known where the job has a cost limit.

    Raises:
        ConfigError: a price is not known; nothing was sent.
    """
    if spec.max_cost is None and spec.max_total_cost is None:
        return
    for target in targets:
        if target.price is None:
            raise ConfigError(
                f"a cost limit needs the price of model {target.model!r} of {target.name}, which is not known: "
                "give `price` in its [[deployments]] entry, or your own table with --prices; nothing was sent"
            )
        if target.transcription_model and target.transcription_price is None:
            raise ConfigError(
                f"a cost limit needs the price of --transcription-model {target.transcription_model!r}, "
                "which is not known: give it in your own table with --prices; nothing was sent"
            )
