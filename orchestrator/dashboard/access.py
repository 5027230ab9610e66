"""Where the dashboard listens, for whom, and what they may do: the settings, checked before
anything is opened.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import stat
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from orchestrator.config import DashboardConfig
from orchestrator.errors import ConfigError
from orchestrator.logs import logger

_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_HOST_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?")
_PASSWORD_BYTES = 1024
# of a container: readable by all in it, who are the one program
_MOUNTED_SECRETS = Path("/run/secrets")


@dataclass(frozen=True)
class Access:
    """Settings of the dashboard that hold: a password is there wherever other machines can reach
    it.

    `address` is numeric; `names` are all that a browser may call this server, lower case and
    without port; `trusted` those of them that the user listed; `password` the bytes to show, or
    None where every user of this machine may come in; `public_url` is where the user says that
    people find the page.
    """

    family: socket.AddressFamily
    address: str
    port: int
    names: frozenset[str]
    trusted: frozenset[str]
    read_only: bool
    password: bytes | None = field(repr=False)
    public_url: str | None = None

    @staticmethod
    def checked(settings: DashboardConfig) -> Access:
        """Resolves `dashboard.host` and reads the password.

        Raises:
            ConfigError: names the setting that does not hold; never shows the password.
        """
        family, address, loopback = _resolved(settings.host)
        if not loopback and settings.password_file is None:
            raise ConfigError(
                f"dashboard.host={settings.host}: other machines can reach it, so it needs "
                "dashboard.password_file=FILE;"
                " or leave dashboard.host at 127.0.0.1 and come through 'ssh -L "
                "8080:127.0.0.1:8080 HOST'"
            )
        trusted = frozenset(_name(entry) for entry in settings.hosts or ())
        own = {*_LOOPBACK_NAMES, settings.host.lower(), address, *_names_of_this_machine(address)}
        return Access(
            family=family,
            address=address,
            port=settings.port,
            names=frozenset(own) | trusted,
            trusted=trusted,
            read_only=settings.read_only,
            password=None if settings.password_file is None else _password(settings.password_file),
            public_url=settings.url,
        )

    @property
    def url(self) -> str:
        """Where a browser finds the page: of this machine, unless `dashboard.url` says
        otherwise.
        """
        if self.public_url is not None:
            return self.public_url
        shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.address, self.address)
        return f"http://[{shown}]:{self.port}/" if ":" in shown else f"http://{shown}:{self.port}/"

    @property
    def terms(self) -> str:
        """Who may do what, in words."""
        who = (
            "open to every user of this machine"
            if self.password is None
            else "asks for the password"
        )
        return f"{who}, read-only" if self.read_only else who


def _resolved(host: str) -> tuple[socket.AddressFamily, str, bool]:
    """The address to listen at, IPv4 where a name has both, and whether only this machine can reach
    the name.
    """
    if not host.strip():
        raise ConfigError(
            "dashboard.host is empty: must be an address of this machine, such as 127.0.0.1"
        )
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "no host name"
        raise ConfigError(
            f"dashboard.host={host}: {why}; must be an address or a name of this machine"
        ) from None
    family, address = min((family, str(place[0])) for family, _, _, _, place in found)
    return (
        family,
        address,
        all(ipaddress.ip_address(str(place[0])).is_loopback for *_, place in found),
    )


def _names_of_this_machine(address: str) -> set[str]:
    """What else this machine is called, where the dashboard listens at all of its addresses."""
    if not ipaddress.ip_address(address).is_unspecified:
        return set()
    interfaces = [entry for entries in psutil.net_if_addrs().values() for entry in entries]
    internet = (socket.AF_INET, socket.AF_INET6)
    return {entry.address.partition("%")[0] for entry in interfaces if entry.family in internet} | {
        socket.gethostname().lower()
    }


def _name(entry: str) -> str:
    try:
        return str(ipaddress.ip_address(entry.strip("[]")))
    except ValueError:
        if not _HOST_NAME.fullmatch(entry):
            raise ConfigError(
                f"dashboard.hosts={entry}: must be a host name or an address, without scheme, "
                "port, path or wildcard,"
                " such as tuning.example.org"
            ) from None
        return entry.lower()


def _password(file: str) -> bytes:
    path = Path(file).expanduser()
    try:
        with path.open("rb") as opened:
            password = opened.read(_PASSWORD_BYTES + 2).strip()
            mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"dashboard.password_file={file}: {why}; must be a file that holds the password"
        ) from None
    if not password:
        raise ConfigError(f"dashboard.password_file={file}: is empty; must hold the password")
    if len(password) > _PASSWORD_BYTES or len(password.splitlines()) > 1 or b"\0" in password:
        raise ConfigError(
            f"dashboard.password_file={file}: must hold one line of at most {_PASSWORD_BYTES} bytes"
        )
    if mode & stat.S_IROTH and _MOUNTED_SECRETS not in path.absolute().parents:
        logger.warning(
            "dashboard.password_file=%s can be read by every user of this machine: chmod 600 %s",
            file,
            file,
        )
    return password
