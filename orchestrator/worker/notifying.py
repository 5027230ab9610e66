"""Tells people by a webhook that a study has ended, has paused itself or has lost a cell.

Every worker and launch of a host that has a webhook looks for such news in its sweeps. Each piece
is taken by one of them, told by a thread of its own, and never waited for: a webhook that fails or
hangs costs a line in the log.
"""

from __future__ import annotations

import hashlib
import json
import queue
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC
from http.client import HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from orchestrator.errors import ConfigError, OrchestratorError
from orchestrator.logs import logger
from orchestrator.model import cell_label
from orchestrator.passwords import HIDDEN
from orchestrator.settings import NotifyConfig

if TYPE_CHECKING:
    from orchestrator.store import Notice, Store

TIMEOUT_S: Final = 10.0
"""How long the webhook may take to connect, and then to answer."""
PAUSES_S: Final = (1.0, 5.0)
"""Between two tries to tell the same; then it is given up."""
PATIENCE_S: Final = 5.0
"""How long the end of a process waits for what is still to be told."""
_MOST_WAITING: Final = 100
_SLACK: Final = "hooks.slack.com"


@dataclass(frozen=True)
class Webhook:
    """Where messages go; whoever knows `url` may write there, so it is shown nowhere."""

    url: str
    slack: bool

    def __repr__(self) -> str:
        return f"Webhook({HIDDEN})"

    @property
    def target(self) -> str:
        """Names the webhook without telling its URL: processes that share it share its notices."""
        return hashlib.sha256(f"orchestrator {self.url}".encode()).hexdigest()[:16]

    def message(self, notice: Notice) -> bytes:
        """What is posted, as JSON."""
        said = {"text": text_of(notice)} if self.slack else data_of(notice)
        return json.dumps(said).encode()


def webhook(settings: NotifyConfig) -> Webhook | None:
    """The webhook of this host; None if it has none.

    Raises:
        ConfigError: the URL is given twice, its file cannot be read, or it is not one of http or
            https.
    """
    url, source = settings.url, "notify.url"
    if settings.url_file is not None:
        if url:
            raise ConfigError(
                f"notify.url_file={settings.url_file}: notify.url, which the environment may set, "
                "gives the URL too; leave out one of them"
            )
        source = f"notify.url_file={settings.url_file}"
        try:
            url = Path(settings.url_file).expanduser().read_text("utf-8").strip()
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not UTF-8"
            raise ConfigError(f"{source}: {why}") from error
        if not url:
            raise ConfigError(f"{source}: the file is empty; it must hold the webhook's URL")
    if not url:
        return None
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and url.isprintable()
        _ = parts.port  # raises if it is none
    except ValueError:
        usable = False
    if not usable or any(character.isspace() for character in url):
        raise ConfigError(
            f"{source}: must be one URL, http://… or https://… (it is not shown here)"
        )
    form = settings.form
    return Webhook(url, form == "slack" or (form == "auto" and parts.hostname == _SLACK))


class Notifier:
    """Takes what there is to tell of some studies, and tells it by the webhook.

    Args:
        studies: their names; None: all.
    """

    def __init__(self, store: Store, hook: Webhook, studies: Sequence[str] | None = None) -> None:
        self._hook = hook
        self._notices = store.notices(hook.target, studies)
        self._waiting: queue.Queue[Notice | None] = queue.Queue(_MOST_WAITING)
        self._thread: threading.Thread | None = None
        self._silent = False

    def look(self, *, last: bool = False) -> None:
        """Takes what has happened since the last call, and has it told; waits for the database
        alone. The first call only notes where it begins.

        Args:
            last: there is no further call, as of `Notices.take`.

        Raises:
            StoreUnavailableError: the database does not answer.
        """
        for notice in self._notices.take(last=last):
            if self._thread is None:
                self._thread = threading.Thread(target=self._tell_all, daemon=True)
                self._thread.start()
            try:
                self._waiting.put_nowait(notice)
            except queue.Full:
                self._give_up(notice, f"{_MOST_WAITING} messages are waiting")

    def close(self) -> None:
        """Looks once more, and waits a moment for what is still to be told."""
        try:
            self.look(last=True)
        except OrchestratorError as error:
            logger.debug("nobody is told of what may have happened last: %s", error)
        if self._thread is None:
            return
        try:
            self._waiting.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(PATIENCE_S)

    def _tell_all(self) -> None:
        while (notice := self._waiting.get()) is not None:
            self._tell(notice)

    def _tell(self, notice: Notice) -> None:
        why = ""
        for pause_s in (*PAUSES_S, None):
            try:
                _post(self._hook.url, self._hook.message(notice))
            except (OSError, HTTPException, ValueError) as error:
                why = _reason(error)
            else:
                self._silent = False
                return
            if pause_s is None or _is_final(why):
                break
            time.sleep(pause_s)
        self._give_up(notice, why)

    def _give_up(self, notice: Notice, why: str) -> None:
        """Logs that nobody was told; once, until the webhook works again."""
        if not self._silent:
            self._silent = True
            logger.warning(
                "the webhook of notify.url was not told that %s (%s); this is not said again "
                "before it works",
                text_of(notice),
                why,
            )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET, which a page to log in answers too."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _post(url: str, message: bytes) -> None:
    request = urllib.request.Request(
        url, message, {"Content-Type": "application/json", "User-Agent": "orchestrator"}
    )
    opener = urllib.request.build_opener(_NoRedirects)
    with opener.open(request, timeout=TIMEOUT_S) as answer:
        answer.read(1)


def _reason(error: Exception) -> str:
    """Why a message was not taken, without the URL."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(cause, TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    if isinstance(cause, ssl.SSLError):  # its text may name the host
        return f"TLS: {type(cause).__name__}"
    strerror = getattr(cause, "strerror", None)
    return str(strerror or type(cause).__name__)


def _is_final(why: str) -> bool:
    """Whether the webhook says that it will never take the message; not that it is too busy."""
    return why.startswith(("HTTP 3", "HTTP 4")) and why not in ("HTTP 408", "HTTP 429")


def text_of(notice: Notice) -> str:
    """One line for people: ``study digits finished: budget spent; 60 of 60 trials, best …``."""
    what = f"study {notice.study} {notice.kind}"
    if notice.cell is not None:
        what = f"study {notice.study}: cell {cell_label(notice.cell)} closed"
    counts = f"{notice.spent} of {notice.total} trials"
    if notice.failed:
        counts += f", {notice.failed} failed"
    if notice.best is not None:
        counts += f", best {notice.metric} {notice.best:.6g} (trial {notice.best_trial})"
    return f"{what}: {notice.reason}; {counts}"


def data_of(notice: Notice) -> dict[str, Any]:
    """The same for programs."""
    best = None
    if notice.best is not None:
        best = {"metric": notice.metric, "value": notice.best, "trial": notice.best_trial}
    return {
        "study": notice.study,
        "kind": notice.kind,
        "reason": notice.reason,
        "time": notice.at.astimezone(UTC).isoformat(),
        "cell": None if notice.cell is None else dict(notice.cell),
        "trials": {"spent": notice.spent, "total": notice.total, "failed": notice.failed},
        "best": best,
        "text": text_of(notice),
    }
