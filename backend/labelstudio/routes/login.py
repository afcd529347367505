"""Basic auth, and the secret that webhooks may bring instead. Wrong guesses are slowed down."""

import hmac
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from flask import Blueprint, request

from backend.errors import TooManyGuesses, Unauthorized
from backend.labelstudio.routes.access import endpoint_name

SECRET_HEADER = "X-Webhook-Secret"

# They hold no secret, and container platforms call them without credentials.
_ALWAYS_OPEN = frozenset({"health", "ready"})
_WEBHOOK = "webhook"

_BURST = 10  # wrong guesses of an address before it has to wait
_GUESSES_PER_S = 1.0
_MAX_ADDRESSES = 10_000


@dataclass(frozen=True, slots=True)
class Credentials:
    """What callers must give. `login` is a user and a password; None: anyone may call.

    `webhook_secret` opens /webhook alone, and closes it to those without it; empty: there is none.
    """

    login: tuple[str, str] | None
    webhook_secret: str = ""


class Guesses:
    """How many wrong guesses each address has left: a few at once, then one a second. Thread-safe."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._lock = threading.Lock()
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # address -> guesses left, at what time

    def wait_s(self, address: str) -> float:
        """Seconds until this address may guess again; 0 if it may now."""
        with self._lock:
            return max(0.0, (1 - self._left_of(address)) / _GUESSES_PER_S)

    def note_wrong(self, address: str) -> None:
        """Count a wrong guess. The addresses that guessed longest ago are forgotten first."""
        with self._lock:
            self._left[address] = (max(0.0, self._left_of(address) - 1), self._now_s())
            self._left.move_to_end(address)
            while len(self._left) > _MAX_ADDRESSES:
                self._left.popitem(last=False)

    def _left_of(self, address: str) -> float:
        left, at_s = self._left.get(address, (_BURST, self._now_s()))
        return min(_BURST, left + (self._now_s() - at_s) * _GUESSES_PER_S)


def require_login(routes: Blueprint, credentials: Credentials) -> None:
    """Answer 401 to a request to `routes` without the credentials, and 429 after too many wrong ones."""
    guesses = Guesses()

    @routes.before_request
    def check() -> None:
        endpoint = endpoint_name()
        if endpoint in _ALWAYS_OPEN or not _is_closed(endpoint, credentials):
            return
        address = request.remote_addr or ""
        wait_s = guesses.wait_s(address)
        if wait_s > 0:
            raise TooManyGuesses("too many wrong passwords or secrets from this address", math.ceil(wait_s))
        if not _is_authorized(endpoint, credentials):
            if request.authorization is not None or _given_secret() is not None:
                guesses.note_wrong(address)
            raise Unauthorized(_what_is_missing(endpoint, credentials))


def _is_closed(endpoint: str, credentials: Credentials) -> bool:
    return credentials.login is not None or _has_secret(endpoint, credentials)


def _is_authorized(endpoint: str, credentials: Credentials) -> bool:
    # everything is always compared, in constant time, so that the time taken reveals nothing
    brings_secret = _equal(_given_secret() or "", credentials.webhook_secret)
    given = request.authorization
    user, password = credentials.login or ("", "")
    name, word = ("", "") if given is None else (given.username or "", given.password or "")
    matches = [_equal(name, user), _equal(word, password)]
    is_logged_in = credentials.login is not None and given is not None and given.type == "basic" and all(matches)
    return is_logged_in or (_has_secret(endpoint, credentials) and brings_secret)


def _given_secret() -> str | None:
    """The secret in the path /webhook/SECRET, or in the header."""
    in_path = (request.view_args or {}).get("secret")
    return in_path if in_path is not None else request.headers.get(SECRET_HEADER)


def _equal(given: str, expected: str) -> bool:
    # surrogates stand for bytes that are no UTF-8
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())


def _what_is_missing(endpoint: str, credentials: Credentials) -> str:
    if credentials.login is None:
        return f"/webhook asks for a secret: call /webhook/SECRET, or send the header {SECRET_HEADER}"
    also = f", or for the secret in the header {SECRET_HEADER}" if _has_secret(endpoint, credentials) else ""
    return f"this backend asks for basic auth{also}: user and password are missing or wrong"


def _has_secret(endpoint: str, credentials: Credentials) -> bool:
    return endpoint == _WEBHOOK and bool(credentials.webhook_secret)
