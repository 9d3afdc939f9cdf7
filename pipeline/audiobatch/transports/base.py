"""The seam between the engine and the service: one call, and a word when an item needs no more of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from audiobatch.model import Reply, Request


class Sink(Protocol):
    """Takes a reply's raw bytes as they come, so that what was received outlives a call that breaks off."""

    async def restart(self) -> None:
        """A call begins: what an earlier call left is replaced by what this one brings, if it brings anything."""
        ...

    async def write(self, piece: bytes) -> None:
        """More of the reply, as it came. Never raises: a reply is worth more than its copy."""
        ...


class Transport(Protocol):
    """Carries requests to one deployment. Safe to use from many tasks of one event loop at once."""

    #: `chat` or `realtime`: the manifest's `transport`.
    @property
    def name(self) -> str: ...

    #: Whether replies come in pieces, so that there is something to give to a sink.
    @property
    def streams(self) -> bool: ...

    async def send(self, request: Request, sink: Sink | None = None) -> Reply:
        """One call, made once: whether to make it again is the caller's to decide.

        Args:
            request: one turn, with the turns before it.
            sink: gets the reply's bytes as they come, where the transport streams.

        Raises:
            RequestRejected: the service refuses this request for good.
            BadReply: a reply that was paid for and is not what was asked for.
            OutcomeUnknown: sent, and the end was not seen.
            TransientError: nothing was bought; the same request may pass later.
            DeploymentFatal: no request to this deployment can pass.
        """
        ...

    def end_item(self, item_id: str) -> None:
        """No further turn of this item comes: a session that was kept for it can be closed."""
        ...

    async def aclose(self) -> None:
        """Close connections and credentials."""
        ...
