"""Define the interface between a run and the service: a transport, and how it reaches a deployment."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from audiobatch.transports.reply_body import LARGEST_REPLY_BYTES

if TYPE_CHECKING:
    from audiobatch.model import Reply, Request
    from audiobatch.transports.auth import EntraTokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceAccess:
    """How a transport reaches one deployment. Exactly one of `key` and `tokens` is given.

    Attributes:
        endpoint: None: OpenAI's own.
        api_version: `v1`, or a dated one of Azure's; sockets have only `v1`.
        timeout_s: of a whole call.
        largest_reply_bytes: what one reply may unpack to.
    """

    provider: Literal["azure", "openai"]
    endpoint: str | None
    deployment: str
    api_version: str = "v1"
    key: str | None = field(default=None, repr=False)
    tokens: EntraTokens | None = None
    timeout_s: float
    largest_reply_bytes: int = LARGEST_REPLY_BYTES


class Sink(Protocol):
    """Takes a reply's raw bytes as they arrive, so that they survive a call that breaks off."""

    async def restart(self) -> None:
        """Start a call: its first bytes replace what an earlier call left."""
        ...

    async def write(self, piece: bytes) -> None:
        """Write more of the reply. Never raises: a reply is worth more than its copy."""
        ...


class Transport(Protocol):
    """Carries requests to one deployment. Safe to use from many tasks of one event loop at once."""

    @property
    def name(self) -> str:
        """`chat`, `realtime` or `transcription`: the manifest's `transport`."""
        ...

    @property
    def streams(self) -> bool:
        """Whether replies arrive in pieces, for a sink."""
        ...

    async def send(self, request: Request, sink: Sink | None = None) -> Reply:
        """Make one call, once: the caller decides whether to repeat it.

        Args:
            request: one turn, with the turns before it.
            sink: gets the reply's bytes as they arrive, where the transport streams.

        Raises:
            RequestRejected: the service refuses this request for good.
            BadReply: a reply that was paid for and is not what was asked for.
            OutcomeUnknown: sent, and the end was not seen.
            TransientError: nothing was bought; the same request may pass later.
            DeploymentFatal: no request to this deployment can pass.
        """
        ...

    def end_item(self, item_id: str) -> None:
        """Close the session of an item: it has no more turns."""
        ...

    async def aclose(self) -> None:
        """Close connections and credentials."""
        ...
