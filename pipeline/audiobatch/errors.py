"""The errors that users and callers meet; an error between two modules is defined where it is raised.

    AudioBatchError
    ├── ConfigError                 settings or arguments that cannot work; nothing was sent
    │   ├── FolderInUse             another run holds the output folder
    │   └── NothingFound            the inputs are there, and hold nothing to send
    ├── InputError                  one input cannot be sent; the others can
    ├── StorageError                the output cannot be written
    │   └── LeaseLost               another run holds the item by now
    ├── BudgetReached               the next call could pass a cost limit
    └── ServiceError                what the service said
        ├── RequestRejected         it refuses this request for good
        │   ├── AudioIdGone         … because it has forgotten the earlier reply
        │   └── ContentFiltered     … because of its content
        ├── BadReply                paid for, but not what was asked
        ├── Unfinished              paid for, and this machine could not work on it
        ├── OutcomeUnknown          sent; perhaps answered, perhaps billed
        ├── TransientError          nothing was bought; the same request may pass later
        │   ├── RateLimited         … after `retry_after_s`
        │   ├── Unavailable         the service is in trouble
        │   └── Disconnected        the service was not reached
        └── DeploymentFatal         no request to this deployment can pass
            ├── AuthenticationFailed
            ├── PermissionMissing
            ├── DeploymentGone
            └── CreditExhausted

An error's class says whose fault it is, and its `error_type` is the word for it in the manifest.
Retry decisions are made by class, never by message text.

An `ExitCode` says how the process ended. The README lists the codes, and scripts rely on them.

No message holds this run's credentials, nor characters that control a terminal. A service may repeat the key that
it refuses, or any bytes, in its error; messages go to the terminal, the manifest and the log. What it sends is
stored without the key too: replies, transcripts, request ids.
"""

from __future__ import annotations

import json
import logging
import re
from contextlib import contextmanager
from copy import copy
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Self
from urllib.parse import quote

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

#: Control characters but line feed and tab: escape sequences begin with one.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
#: In a name also characters that begin a new line, or change the direction of the text.
_IN_NAMES = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
HIDDEN = "…"
#: Shorter strings are no credentials (`none`, `test`), and occur in ordinary text.
_LEAST_LENGTH = 8
#: Credentials, in plain form and as JSON and addresses encode them.
_secrets: set[str] = set()


def register_secret(secret: str) -> None:
    """Remove this credential from every message from now on."""
    if len(secret) >= _LEAST_LENGTH:
        in_json = json.dumps(secret)[1:-1]
        _secrets.update({secret, in_json, in_json.replace("/", "\\/"), quote(secret, safe="")})


def redacted(text: str) -> str:
    """Return the text with every credential as `…`, and without control characters."""
    return _CONTROLS.sub("", _without_secrets(text))


def redacted_bytes(data: bytes) -> bytes:
    """Return a body with every credential as `…`, and otherwise unchanged."""
    for secret in _secrets:
        data = data.replace(secret.encode(), HIDDEN.encode())
    return data


def longest_secret_bytes() -> int:
    """Return the length of the longest registered credential: a body's end may hold the beginning of one."""
    return max((len(secret.encode()) for secret in _secrets), default=0)


def shown(name: object) -> str:
    """Return a name or path as it is printed within a line: control characters escaped, without credentials."""
    return _IN_NAMES.sub(
        lambda found: found[0].encode("unicode_escape").decode("ascii"), _without_secrets(str(name))
    )


def _without_secrets(text: str) -> str:
    for secret in _secrets:
        if secret in text:
            text = text.replace(secret, HIDDEN)
    return text


log = logging.getLogger(__name__)


class ErrorType(StrEnum):
    """The manifest's `error_type`: a closed list that users filter by."""

    INPUT = "input"
    REJECTED = "rejected"
    CONTENT_FILTER = "content_filter"
    BAD_REPLY = "bad_reply"
    RATE_LIMITED = "rate_limited"
    UNAVAILABLE = "unavailable"
    DISCONNECTED = "disconnected"
    TIMED_OUT = "timed_out"
    AUTHENTICATION = "authentication"
    PERMISSION = "permission"
    DEPLOYMENT = "deployment"
    CREDIT = "credit"
    UNFINISHED = "unfinished"
    BUDGET = "budget"
    STORAGE = "storage"
    INTERNAL = "internal"


#: In characters. A rejected prompt is quoted in some refusals, so that it may be a few sentences.
LONGEST_MESSAGE = 2_000
#: A failure of one of these types is sent again by the next `run`; the others only by `retry`.
RETRYABLE: frozenset[ErrorType] = frozenset(
    {
        ErrorType.RATE_LIMITED,
        ErrorType.UNAVAILABLE,
        ErrorType.DISCONNECTED,
        ErrorType.TIMED_OUT,
        ErrorType.AUTHENTICATION,
        ErrorType.PERMISSION,
        ErrorType.DEPLOYMENT,
        ErrorType.CREDIT,
        ErrorType.BUDGET,
        ErrorType.STORAGE,
        ErrorType.INTERNAL,
        ErrorType.INPUT,
    }
)


def _cut(message: str) -> str:
    """Shorten a message that is too long for a cell, a line and a page."""
    if len(message) <= LONGEST_MESSAGE:
        return message
    return f"{message[:LONGEST_MESSAGE]} … ({len(message):,} characters)"


class AudioBatchError(Exception):
    """The root: `except AudioBatchError` catches all that this project raises on purpose.

    Attributes:
        message: for people; holds no credential, whatever the service repeated, and no control characters.
    """

    error_type: ErrorType = ErrorType.INTERNAL

    def __init__(self, message: str) -> None:
        self.message = _cut(redacted(message))
        super().__init__(self.message)


class ConfigError(AudioBatchError):
    """Settings or arguments that cannot work. The message says which, and what is allowed."""


class FolderInUse(ConfigError):
    """Another run holds the output folder's lock."""


class NothingFound(ConfigError):
    """The inputs hold no recording and no prompt, perhaps not yet."""


class InputError(AudioBatchError):
    """One input cannot be sent. The message is the reason, ready for the manifest."""

    error_type = ErrorType.INPUT


class StorageError(AudioBatchError):
    """The output cannot be written: no space, no permission, gone."""

    error_type = ErrorType.STORAGE


class LeaseLost(StorageError):
    """Another run holds the item now: this one was silent for too long. What it writes of it is refused."""


class BudgetReached(AudioBatchError):
    """The next call could pass `--max-cost` or `--max-total-cost`."""

    error_type = ErrorType.BUDGET


class ServiceError(AudioBatchError):
    """What the service said, in its own words where it said any.

    Attributes:
        status: HTTP status, or None where there was none.
        code: the service's error code, for example `audio_not_found`.
        request_id: the service's id of the request, for a support case.
        limits: the rate-limit headers that came with it, lower case.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        request_id: str | None = None,
        limits: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.limits = limits or {}
        self.status = status
        self.code = redacted(code) if code else code
        self.request_id = redacted(request_id) if request_id else request_id

    def with_limits(self, limits: Mapping[str, str]) -> Self:
        """Return a copy with the rate-limit headers of the session, where the error has none of its own."""
        copied = copy(self)
        copied.limits = self.limits or limits
        return copied


class RequestRejected(ServiceError):
    """The service refuses this request, today and tomorrow (400, 413, 422)."""

    error_type = ErrorType.REJECTED


class AudioIdGone(RequestRejected):
    """The earlier reply that this turn names by its audio id is no longer kept by the service."""


class ContentFiltered(RequestRejected):
    """The content filter refused the prompt or cut the reply; `code` names the category where known."""

    error_type = ErrorType.CONTENT_FILTER


class BadReply(ServiceError):
    """A reply that was paid for and is not what was asked for.

    Attributes:
        raw: the body as it came, kept beside the item.
    """

    error_type = ErrorType.BAD_REPLY

    def __init__(self, message: str, *, raw: bytes = b"", request_id: str | None = None) -> None:
        super().__init__(message, status=200, request_id=request_id)
        self.raw = raw


class Unfinished(ServiceError):
    """A reply that was paid for, and that this machine could not work on: the fault is not the service's.

    Attributes:
        raw: the body, from which the next run finishes the work.
        is_disk_trouble: the system refused a file.
    """

    error_type = ErrorType.UNFINISHED

    def __init__(
        self, message: str, *, raw: bytes = b"", request_id: str | None = None, is_disk_trouble: bool = False
    ) -> None:
        super().__init__(message, status=200, request_id=request_id)
        self.raw = raw
        self.is_disk_trouble = is_disk_trouble


@contextmanager
def working_on_reply(body: Callable[[], bytes], request_id: str | None = None) -> Iterator[None]:
    """Wrap work on a whole reply. It was paid for: whatever goes wrong, the error carries its body.

    Args:
        body: makes the body to store.
        request_id: as the service named the request.

    Raises:
        Unfinished: in place of every error that is none of this project's.
    """
    try:
        yield
    except AudioBatchError:
        raise
    except Exception as failed:
        log.exception("a reply could not be worked on")
        message = f"the reply is paid for, and could not be worked on: {failed!r}"
        is_disk_trouble = isinstance(failed, OSError)
        try:
            raw = body()
        except Exception:
            log.exception("its body could not be made")
            raw = b""
        raise Unfinished(message, raw=raw, request_id=request_id, is_disk_trouble=is_disk_trouble) from failed


@contextmanager
def working_on_event() -> Iterator[None]:
    """Wrap work on an event of a reply that is still arriving; what arrived before it is stored elsewhere.

    Raises:
        BadReply: in place of every error that is none of this project's.
    """
    try:
        yield
    except AudioBatchError:
        raise
    except Exception as failed:
        log.exception("an event could not be worked on")
        raise BadReply(f"an event could not be worked on: {failed!r}") from failed


@contextmanager
def working_on_input(name: str) -> Iterator[None]:
    """What is done to one input. Whatever goes wrong is that input's refusal, and the run goes on.

    Args:
        name: the file's name or the item's id, for the log.

    Raises:
        InputError: in place of every error that is none of this project's.
    """
    try:
        yield
    except AudioBatchError:
        raise
    except Exception as failed:
        log.exception("%s: cannot be worked on", name)
        raise InputError(f"it cannot be read: {type(failed).__name__}: {failed}") from failed


class OutcomeUnknown(ServiceError):
    """The request was sent and its end was not seen: perhaps answered, perhaps billed."""

    error_type = ErrorType.DISCONNECTED

    def __init__(
        self,
        message: str,
        *,
        timed_out: bool = False,
        status: int | None = None,
        request_id: str | None = None,
        limits: Mapping[str, str] | None = None,
        raw: bytes = b"",
    ) -> None:
        super().__init__(message, status=status, request_id=request_id, limits=limits)
        self.raw = raw
        if timed_out:
            self.error_type = ErrorType.TIMED_OUT


class TransientError(ServiceError):
    """Nothing was bought; the same request may pass later."""


class RateLimited(TransientError):
    """429 for rate. `retry_after_s` is the wait the service asked for, None where it named none."""

    error_type = ErrorType.RATE_LIMITED

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        request_id: str | None = None,
        limits: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, status=429, request_id=request_id, limits=limits)
        self.retry_after_s = retry_after_s


class Unavailable(TransientError):
    """500, 502, 503, 504, 529. `retry_after_s` where the service named a wait."""

    error_type = ErrorType.UNAVAILABLE

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        retry_after_s: float | None = None,
        request_id: str | None = None,
        limits: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message, status=status, request_id=request_id, limits=limits)
        self.retry_after_s = retry_after_s


class Disconnected(TransientError):
    """The service was not reached (name look-up, connect, TLS): nothing was sent."""

    error_type = ErrorType.DISCONNECTED


class DeploymentFatal(ServiceError):
    """No request to this deployment can pass; the job stops when no deployment is left."""


class AuthenticationFailed(DeploymentFatal):
    """401: wrong key, or a token that is missing, expired or for another audience."""

    error_type = ErrorType.AUTHENTICATION


class PermissionMissing(DeploymentFatal):
    """The credential is good but lacks the role, or the network is not let in."""

    error_type = ErrorType.PERMISSION


class DeploymentGone(DeploymentFatal):
    """404: no such deployment, or the wrong endpoint or API version."""

    error_type = ErrorType.DEPLOYMENT


class CreditExhausted(DeploymentFatal):
    """No credit, or a spend limit: waiting does not help."""

    error_type = ErrorType.CREDIT


class ExitCode(IntEnum):
    """The end of a command."""

    DONE = 0
    INTERNAL = 1
    #: Settings, or a folder that is in use or cannot be written.
    USAGE = 2
    #: Finished, and something of it is not well.
    PARTIAL = 3
    #: No usable credential, deployment or credit.
    NO_DEPLOYMENT = 4
    #: Run again later.
    PARKED = 5
    #: Of cost or failures.
    LIMIT = 6
    SIGINT = 130
    SIGTERM = 143


#: Where several hold, the first of these does.
BY_SEVERITY = (
    *(ExitCode.INTERNAL, ExitCode.USAGE, ExitCode.NO_DEPLOYMENT, ExitCode.LIMIT, ExitCode.PARKED),
    *(ExitCode.PARTIAL, ExitCode.SIGINT, ExitCode.SIGTERM, ExitCode.DONE),
)
