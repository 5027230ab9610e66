"""The guard in front of every page: checks each request, and hardens each response for browsers."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from orchestrator.dashboard.access import Access
from orchestrator.logs import logger

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

BODY_BYTES = 1 << 20
"""The longest request body that is accepted; notes are the largest thing a browser sends."""
_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
_NO_PAGE = ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
_REPLACED = frozenset(name.lower() for name, _ in _HEADERS)
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s\[\]:/@,]+)(?::(\d{1,5}))?")
_PORTS = {"http": 80, "https": 443}
_READING = ("GET", "HEAD")
_GUESSES = 10
_GUESSES_S = 60.0
_ADDRESSES = 1024


@dataclass(frozen=True)
class Refusal:
    """A response instead of the page's, in the form in which optuna-dashboard shows errors."""

    status: str
    reason: str
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def body(self) -> bytes:
        return json.dumps({"reason": self.reason}).encode()


class Guard:
    """Passes a request on to `app` only if it passes every check.

    It hardens every response, including refusals.

    It knows no routes: each check applies to every path.
    """

    def __init__(self, app: WSGIApplication, access: Access) -> None:
        self._app = app
        self._access = access
        self._guesses = _Guesses()
        self._checks = (self._name, self._password, self._origin, self._writing, self._length)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        hardened = _hardened(start_response)
        refusal = next((found for check in self._checks if (found := check(environ))), None)
        if refusal is None:
            return self._app(environ, hardened)
        content = [("Content-Type", "application/json"), ("Content-Length", str(len(refusal.body)))]
        hardened(refusal.status, [*content, *refusal.headers])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [refusal.body]

    def _name(self, environ: WSGIEnvironment) -> Refusal | None:
        # A foreign page whose name resolves to this server (DNS rebinding) has the same origin as
        # we do, but it sends its own name.
        header = environ.get("HTTP_HOST", "")
        if (host := _authority(header)) and host[0] in self._access.names:
            return None
        return Refusal(
            "403 Forbidden",
            f"{header[:100]!r} is not a name of this dashboard; if it should be, set "
            "dashboard.hosts=[NAME]",
        )

    def _password(self, environ: WSGIEnvironment) -> Refusal | None:
        if self._access.password is None:
            return None
        given = _credential(environ.get("HTTP_AUTHORIZATION", ""))
        client = environ.get("REMOTE_ADDR", "")
        if given is not None:
            if self._guesses.exhausted(client):
                wait = ("Retry-After", f"{_GUESSES_S:.0f}")
                return Refusal(
                    "429 Too Many Requests",
                    f"too many wrong passwords; wait {_GUESSES_S:.0f} seconds",
                    (wait,),
                )
            if hmac.compare_digest(_digest(given), _digest(self._access.password)):
                return None
            self._guesses.add(client, given)
        challenge = (
            "WWW-Authenticate",
            'Basic realm="orchestrator dashboard (any user name)", charset="UTF-8"',
        )
        return Refusal(
            "401 Unauthorized", "the password of dashboard.password_file is needed", (challenge,)
        )

    def _origin(self, environ: WSGIEnvironment) -> Refusal | None:
        # A browser sends the password, and can reach 127.0.0.1, on behalf of any page it shows:
        # accept changes only from our own.
        if environ["REQUEST_METHOD"] in _READING:
            return None
        site = environ.get("HTTP_SEC_FETCH_SITE", "none")
        pages = [environ[name] for name in ("HTTP_ORIGIN", "HTTP_REFERER") if name in environ]
        if site in ("same-origin", "none") and all(
            self._is_own(page, environ["HTTP_HOST"]) for page in pages
        ):
            return None
        return Refusal(
            "403 Forbidden",
            "changes are accepted only from the dashboard's own page, not from another site",
        )

    def _is_own(self, page: str, host: str) -> bool:
        try:
            url = urlsplit(page)
        except ValueError:
            return False
        origin, own = _authority(url.netloc), _authority(host)
        if origin is None or own is None or url.scheme not in _PORTS:
            return False
        port = _PORTS[url.scheme]
        return (origin[0], origin[1] or port) == (own[0], own[1] or port) or origin[
            0
        ] in self._access.trusted

    def _writing(self, environ: WSGIEnvironment) -> Refusal | None:
        if not self._access.read_only or environ["REQUEST_METHOD"] in _READING:
            return None
        return Refusal("403 Forbidden", "this dashboard is read-only (dashboard.read_only=true)")

    def _length(self, environ: WSGIEnvironment) -> Refusal | None:
        length = environ.get("CONTENT_LENGTH") or "0"
        if length.isdecimal() and int(length) <= BODY_BYTES:
            return None
        return Refusal(
            "413 Content Too Large",
            f"the request has {length} bytes; at most {BODY_BYTES} are accepted",
        )


class _Guesses:
    """Distinct wrong passwords by client address; thread-safe.

    A tab that keeps sending an old one counts once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wrong: OrderedDict[str, tuple[float, set[bytes]]] = OrderedDict()

    def exhausted(self, client: str) -> bool:
        with self._lock:
            return len(self._current(client)) >= _GUESSES

    def add(self, client: str, password: bytes) -> None:
        with self._lock:
            wrong = self._current(client)
            wrong.add(_digest(password))
            if len(wrong) == 1:
                self._wrong[client] = (time.monotonic(), wrong)
                if len(self._wrong) > _ADDRESSES:
                    self._wrong.popitem(last=False)
            if len(wrong) == _GUESSES:
                logger.warning(
                    "%d wrong passwords from %s; it is refused for up to %.0f s",
                    _GUESSES,
                    client,
                    _GUESSES_S,
                )

    def _current(self, client: str) -> set[bytes]:
        begun, wrong = self._wrong.get(client, (0.0, set[bytes]()))
        if wrong and time.monotonic() - begun >= _GUESSES_S:
            del self._wrong[client]
            return set()
        return wrong


def _hardened(start_response: StartResponse) -> StartResponse:
    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        names = {name.lower() for name, _ in headers}
        kept = [
            pair
            for pair in headers
            if not pair[0].lower().startswith("access-control-")
            and pair[0].lower() not in _REPLACED
        ]
        policy = () if _NO_PAGE[0].lower() in names else (_NO_PAGE,)
        return start_response(status, [*kept, *_HEADERS, *policy], exc_info)

    return start


def _authority(text: str) -> tuple[str, int | None] | None:
    """Name or address (lower case, without brackets) and port of a `Host` header.

    None if it is malformed.
    """
    found = _AUTHORITY.fullmatch(text)
    return (
        None
        if found is None
        else (found[1].strip("[]").lower(), int(found[2]) if found[2] else None)
    )


def _credential(header: str) -> bytes | None:
    """The password of `Basic` (with any user name) or the token of `Bearer`.

    None if the header has neither.
    """
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1", "replace")
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(value.strip(), validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return None


def _digest(password: bytes) -> bytes:
    # Digests have one length, so the comparison does not reveal the password's length either.
    return hashlib.sha256(password).digest()
