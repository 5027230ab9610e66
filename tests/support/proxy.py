"""A TCP proxy before PostgreSQL that a test may freeze, cut or turn into a black hole."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType

from sqlalchemy.engine import make_url

_RST_AT_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, 0 s

_GOODBYE = b"X\x00\x00\x00\x04"  # Terminate, of PostgreSQL's protocol


class Proxy:
    """Passes connections on to the server of `url`, which it reaches by Unix socket; gone when the
    block ends.

    Attributes:
        url: the same database by way of this proxy.
        hung: set once a connection hangs as `hang_at` says.
        accepted: how many connections clients have opened so far.
        most: the largest number of connections that were ever open at once.
    """

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self._target = f"{parsed.query['host']}/.s.PGSQL.{parsed.query.get('port', 5432)}"
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        port = self._listener.getsockname()[1]
        self.url = parsed.set(host="127.0.0.1", port=port, query={}).render_as_string(
            hide_password=False
        )
        self._lock = threading.Lock()
        self._flows = threading.Event()
        self._flows.set()
        self._swallows = False
        self._ended = threading.Event()
        self._hangs_at: bytes | None = None
        self.hung = threading.Event()
        self._lost: Callable[[bytes], bool] | None = None
        self.accepted = self.most = 0
        self._pairs: set[tuple[socket.socket, socket.socket]] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def connections(self) -> int:
        """How many are open now."""
        with self._lock:
            return len(self._pairs)

    def freeze(self) -> None:
        """Nothing passes any more, in either direction; what is sent waits, and new connections are
        not answered.
        """
        self._flows.clear()

    def thaw(self) -> None:
        """All passes again, also what was sent meanwhile; of a black hole's connections nothing is
        left.
        """
        if self._swallows:
            self.cut()
        self._swallows = False
        self._flows.set()

    def swallow(self) -> None:
        """A black hole: what is sent is taken and never arrives, on connections old and new."""
        self._swallows = True

    def hang_at(self, words: bytes) -> None:
        """The next connection that says `words` stays up and is never answered, as by a server
        whose disk hangs.
        """
        self._hangs_at = words

    def lose_answers(self, lost: Callable[[bytes], bool]) -> None:
        """What a client says is passed on, and where it is `lost` the connection breaks before the
        answer comes.
        """
        self._lost = lost

    def cut(self) -> None:
        """Resets every connection (RST)."""
        with self._lock:
            pairs, self._pairs = self._pairs, set()
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_AT_CLOSE)
                    # wakes its thread, which closes it: the reset is then sent
                    end.shutdown(socket.SHUT_RD)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._flows.set()
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as server:
            self._flows.wait()
            try:
                server.connect(self._target)
            except OSError:
                return
            pair = (client, server)
            with self._lock:
                self.accepted += 1
                self.most = max(self.most, 1 + sum(not _left(other) for other, _ in self._pairs))
                self._pairs.add(pair)
            with contextlib.suppress(OSError):
                self._pump(client, server)
            with self._lock:
                self._pairs.discard(pair)

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(client, selectors.EVENT_READ, server)
            selector.register(server, selectors.EVENT_READ, client)
            while not self._ended.is_set():
                for key, _ in selector.select(timeout=0.5):
                    self._flows.wait()
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                    if not data:
                        return
                    if (
                        key.fileobj is client
                        and self._hangs_at is not None
                        and self._hangs_at in data
                    ):
                        self._hangs_at = None
                        self.hung.set()
                        self._ended.wait()
                    if not self._swallows:
                        key.data.sendall(data)
                    if key.fileobj is client and self._lost is not None and self._lost(data):
                        server.recv(65536)
                        return


def _left(client: socket.socket) -> bool:
    """Whether a client has said goodbye already, though its connection is not taken down yet."""
    try:
        said = client.recv(5, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return said in (b"", _GOODBYE)
