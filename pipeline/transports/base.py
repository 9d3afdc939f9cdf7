"""The seam between the engine and the service: one method."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pipeline.model import Reply, Request


class Transport(Protocol):
    """Carries requests to one deployment. Safe to use from many tasks of one event loop at once."""

    #: `chat` or `realtime`: the manifest's `transport`.
    name: str

    async def send(self, request: Request) -> Reply:
        """One call, made once: whether to make it again is the caller's to decide.

        Raises:
            RequestRejected: the service refuses this request for good.
            BadReply: a reply that was paid for and is not what was asked for.
            OutcomeUnknown: sent, and the end was not seen.
            TransientError: nothing was bought; the same request may pass later.
            DeploymentFatal: no request to this deployment can pass.
        """
        ...

    async def aclose(self) -> None:
        """Close connections and credentials."""
        ...
