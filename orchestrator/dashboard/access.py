"""The dashboard's settings, checked: where it listens, who may connect and what they may do."""

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
# Readable by all in a container, which runs only this program.
_MOUNTED_SECRETS = Path("/run/secrets")


@dataclass(frozen=True)
class Access:
    """Valid settings of the dashboard; if other machines can reach it, a password is set.

    `address` is numeric. `names` are all host names that a browser may use for this server, in
    lower case and without port; `trusted` are those of them that the user listed. `password` is
    None if every user of this machine may connect without one. `public_url` is the page's address
    as the user set it.
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
            ConfigError: a setting is invalid; the message names it and never contains the password.
        """
        family, address, loopback = _resolved(settings.host)
        if not loopback and settings.password_file is None:
            raise ConfigError(
                f"dashboard.host={settings.host}: other machines can reach it, so it needs"
                " dashboard.password_file=FILE; or leave dashboard.host at 127.0.0.1 and connect"
                " through 'ssh -L 8080:127.0.0.1:8080 HOST'"
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
        """The page's address for a browser on this machine, or `dashboard.url` if it is set."""
        if self.public_url is not None:
            return self.public_url
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.address, self.address)
        return f"http://[{host}]:{self.port}/" if ":" in host else f"http://{host}:{self.port}/"

    @property
    def terms(self) -> str:
        """Who may connect and what they may do, in words."""
        who = (
            "open to every user of this machine"
            if self.password is None
            else "asks for the password"
        )
        return f"{who}, read-only" if self.read_only else who


def _resolved(host: str) -> tuple[socket.AddressFamily, str, bool]:
    """The family and address to listen on (IPv4 if a name has both), and whether it is loopback."""
    if not host.strip():
        raise ConfigError(
            "dashboard.host: is empty; must be an address of this machine, such as 127.0.0.1"
        )
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a host name"
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
    """This machine's other names and addresses, if the dashboard listens on all of them."""
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
                f"dashboard.hosts={entry}: must be a host name or an address without scheme, "
                "port, path or wildcard, such as tuning.example.org"
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
            f"dashboard.password_file={file}: {why}; must be a file that contains the password"
        ) from None
    if not password:
        raise ConfigError(f"dashboard.password_file={file}: is empty; must contain the password")
    if len(password) > _PASSWORD_BYTES or len(password.splitlines()) > 1 or b"\0" in password:
        raise ConfigError(
            f"dashboard.password_file={file}: must contain one line of at most {_PASSWORD_BYTES} "
            "bytes"
        )
    if mode & stat.S_IROTH and _MOUNTED_SECRETS not in path.absolute().parents:
        logger.warning(
            "dashboard.password_file=%s can be read by every user of this machine: run chmod 600 "
            "%s",
            file,
            file,
        )
    return password
