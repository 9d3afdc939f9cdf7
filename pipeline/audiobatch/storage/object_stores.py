"""The stores behind addresses, as fsspec file systems, set up so that one layer alone retries: ours.

az://       extra `azure`; AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and
            DefaultAzureCredential (`az login`, a managed identity, …)
s3://       extra `s3`; botocore's chain (AWS_…, profiles, roles); AWS_ENDPOINT_URL for another service
memory://   lives and ends with the process
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any, Final

from audiobatch.errors import ConfigError

if TYPE_CHECKING:
    from audiobatch.address import Address

CONNECT_TIMEOUT_S: Final = 20
READ_TIMEOUT_S: Final = 60
_EXTRAS: Final = {"az": ("azure", "adlfs"), "s3": ("s3", "s3fs")}


def filesystem_of(address: Address) -> Any:
    """The fsspec file system behind an address; one for all calls of this process.

    Raises:
        ConfigError: the extra for it is not installed, or nothing says which account it is.
    """
    protocol = address.protocol
    if protocol in _EXTRAS:
        extra, module = _EXTRAS[protocol]
        try:
            importlib.import_module(module)
        except ImportError as missing:
            raise ConfigError(
                f"{protocol}:// needs the extra {extra!r}, which is not installed ({missing.name or missing} is "
                f"missing): `pip install 'audiobatch[{extra}]'`, here `uv sync --extra {extra}`"
            ) from None
    import fsspec

    match protocol:
        case "az":
            return _azure(fsspec)
        case "s3":
            return _s3(fsspec)
        case _:
            return fsspec.filesystem(protocol)


def _azure(fsspec: Any) -> Any:
    connection = os.environ.get("AZURE_STORAGE_CONNECTION_STRING")
    account = os.environ.get("AZURE_STORAGE_ACCOUNT_NAME")
    if not connection and not account:
        raise ConfigError(
            "az:// does not say which storage account: set AZURE_STORAGE_ACCOUNT_NAME and sign in with "
            "`az login` (recommended), or set AZURE_STORAGE_CONNECTION_STRING"
        )
    # Named here although adlfs reads them too: fsspec keeps one file system for each set of these.
    named = {"connection_string": connection} if connection else {"account_name": account, "anon": False}
    try:
        filesystem = fsspec.filesystem(
            "az",
            **named,
            use_listings_cache=False,
            connection_timeout=CONNECT_TIMEOUT_S,
            read_timeout=READ_TIMEOUT_S,
        )
    except ValueError:  # its words may quote the connection string
        name = "AZURE_STORAGE_CONNECTION_STRING" if connection else "AZURE_STORAGE_ACCOUNT_NAME"
        raise ConfigError(f"az:// cannot be used: {name} is not as it should be") from None
    # adlfs has no way to say it: the client waits 15 s before its first retry, and does not retry a 429.
    policy = getattr(getattr(filesystem.service_client, "_config", None), "retry_policy", None)
    if policy is not None:
        policy.total_retries = 0
    return filesystem


def _s3(fsspec: Any) -> Any:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    filesystem = fsspec.filesystem(
        "s3",
        endpoint_url=endpoint,
        use_listings_cache=False,
        config_kwargs={
            "connect_timeout": CONNECT_TIMEOUT_S,
            "read_timeout": READ_TIMEOUT_S,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
            "max_pool_connections": 64,
        },
    )
    filesystem.retries = 1
    return filesystem
