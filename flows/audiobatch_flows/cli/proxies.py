"""Servers on this machine are reached directly, whatever proxy the environment names for the rest of the world.

Prefect's own server and the emulator live on loopback. Clients go there by the proxy of `HTTP_PROXY` or `ALL_PROXY`
unless `NO_PROXY` names it, and a company's proxy knows nothing of this machine's ports.
"""

from __future__ import annotations

import os

_HERE = ("127.0.0.1", "localhost", "::1")


def spare_this_machine() -> None:
    """Add this machine to `NO_PROXY`, for this process and its children, where the environment names a proxy.

    Where it names none, nothing is set: a `NO_PROXY` of its own would hide the proxies that macOS and Windows keep
    elsewhere.
    """
    names = {name.lower() for name, value in os.environ.items() if value}
    if not any(name.endswith("_proxy") and name != "no_proxy" for name in names):
        return
    # Of the two spellings the small one wins, where clients look at both.
    spared = (os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or "").split(",")
    spared = [host.strip() for host in spared if host.strip()]
    if "*" in spared:
        return
    both = ",".join([*spared, *(host for host in _HERE if host not in spared)])
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = both
