"""Keeps web pages of other origins away from a server of this machine.

A browser lets any page send requests to 127.0.0.1. Three rules keep them out, whatever the method:

    Host             must name this server: else a page's own name, pointed at this machine, makes it same-origin
                     (DNS rebinding)
    Origin           must be the server's own, where there is one; browsers send it with all but plain GETs
    Sec-Fetch-Site   must not be another site's, but for a link that a person follows

Programs send neither of the last two. Nobody is given CORS headers.
Source: fetch.spec.whatwg.org, "Origin header"; w3c.github.io/webappsec-fetch-metadata, checked 2026-11-30.
"""

import ipaddress
import re
from collections.abc import Collection, Iterable, Sequence

LOOPBACK_NAMES = frozenset({"127.0.0.1", "localhost", "::1"})
#: Of answers that cross an origin; none leaves this server.
CORS_PREFIX = "access-control-"

_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-f:.]+)\]|(?P<name>[a-z0-9._-]+))(?::\d{1,5})?")
_OWN_SITES = frozenset({"", "same-origin", "none"})


def allowed_hosts(host: str, names: Iterable[str] = ()) -> frozenset[str]:
    """Returns the names under which a server may be addressed.

    Args:
        host: the address that it listens on.
        names: others, as a proxy or a name server knows it; a port behind a name is ignored.
    """
    return LOOPBACK_NAMES | {_bare(name) for name in (host, *names)}


def is_loopback(host: str) -> bool:
    """Returns whether an address to listen on is reached from this machine alone."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def refusal(
    *,
    hosts: Collection[str],
    host: Sequence[str],
    origin: Sequence[str],
    fetch_site: str = "",
    is_link: bool = False,
) -> str:
    """Returns why a request is refused; empty where it is let in.

    Args:
        hosts: `allowed_hosts`.
        host: every `Host` header of the request.
        origin: every `Origin` header.
        fetch_site: the `Sec-Fetch-Site` header.
        is_link: a GET that shows a whole page, as a browser says in `Sec-Fetch-Mode` and `Sec-Fetch-Dest`.
    """
    if len(host) != 1 or _name_of(host[0]) not in hosts:
        return "the Host header does not name this server; --allow-host NAME lets a name in"
    own = host[0].lower()
    if any(address.lower() not in {f"http://{own}", f"https://{own}"} for address in origin):
        return "pages of other origins are refused"
    if fetch_site.lower() not in _OWN_SITES and not is_link:
        return "requests of other sites' pages are refused"
    return ""


def _name_of(host: str) -> str | None:
    """Returns the host's name: `Localhost:4200` → `localhost`, `[::1]:80` → `::1`; None for what is no host."""
    found = _HOST.fullmatch(host.lower())
    return (found["v6"] or found["name"].rstrip(".")) if found else None


def _bare(name: str) -> str:
    return _name_of(name) or name.lower().strip("[]")
