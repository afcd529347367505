"""Keeps web pages of other sites away: a browser on the same machine can reach us, and pages can make it call.

Only browsers send `Origin` and `Sec-Fetch-Site`; Label Studio's server and scripts do not, and are not affected.
"""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from flask import Blueprint, Response, request

from backend.errors import ForeignPage

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
# Names that only a local network gives out, or only this machine. A page cannot point a public name's address here
# and have the browser call us by that name (DNS rebinding).
_LOCAL_ENDINGS = (".localhost", ".local", ".internal", ".lan", ".home.arpa", ".intranet", ".test")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def refuse_foreign_pages(routes: Blueprint, allowed_hosts: Collection[str], *, has_login: bool) -> None:
    """Answer 403 to what a page of another site makes a browser send.

    `allowed_hosts` are names of this backend besides local ones, in lower case, without port. With a login, its name
    need not be known: a page of another site does not have the password.
    """

    @routes.before_request
    def check() -> None:
        origin, site = request.headers.get("Origin"), request.headers.get("Sec-Fetch-Site")
        if origin is None and site is None:
            return
        if request.method not in _READING and _is_foreign(origin, site, allowed_hosts):
            raise ForeignPage(
                f"a page of {origin or 'another site'!r} may not call {request.method} here; if it should, add its "
                "host to GNER_ALLOWED_HOSTS"
            )
        if not has_login and not is_local(_host_name(request.host), allowed_hosts):
            raise ForeignPage(
                f"this backend does not know the name {request.host!r}; add it to GNER_ALLOWED_HOSTS, or set "
                "BASIC_AUTH_USER and BASIC_AUTH_PASS"
            )


def _is_foreign(origin: str | None, site: str | None, allowed_hosts: Collection[str]) -> bool:
    if origin is None:
        return site not in ("same-origin", "none")
    try:
        parts = urlsplit(origin)
        name = (parts.hostname or "").lower()
    except ValueError:
        return True
    return parts.netloc.lower() != request.host.lower() and name not in allowed_hosts


def is_local(name: str, allowed_hosts: Collection[str]) -> bool:
    """Whether a host name, in lower case, is an address, a name without a dot, a local one or an allowed one."""
    if name in allowed_hosts or "." not in name or name.endswith(_LOCAL_ENDINGS):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _host_name(host: str) -> str:
    """`example.org:9090` -> `example.org`; `[::1]:9090` -> `::1`."""
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".").lower()
    except ValueError:
        return host.lower()


def send_security_headers(routes: Blueprint) -> None:
    """Tell browsers to treat every answer as data: no sniffing, no frames, no scripts, no caches."""

    @routes.after_app_request
    def add(response: Response) -> Response:
        for name, value in _HEADERS.items():
            response.headers.setdefault(name, value)
        return response
