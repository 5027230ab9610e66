"""The account that an embedded PostgreSQL runs as when root starts it, since PostgreSQL refuses to
run as root.
"""

from __future__ import annotations

import os
import pwd
import stat
import struct
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from orchestrator.errors import StoreUnavailableError

SERVER_ACCOUNT = "pgserver"  # the name that the wheel's own code uses too

# POSIX access control lists as the kernel stores them (linux/posix_acl_xattr.h): a version, then
# (tag, permissions, id).
_ACL = "system.posix_acl_access"
_OWNER, _USER, _GROUP, _MASK, _OTHER, _NOBODY = 0x01, 0x02, 0x04, 0x10, 0x20, 0xFFFFFFFF


def server_account() -> pwd.struct_passwd:
    """Returns the account, made if it is missing; safe when several processes need it at once.

    Raises:
        StoreUnavailableError: It is missing and cannot be made.
    """
    command = (
        "useradd",
        "--system",
        "--no-create-home",
        "--shell",
        "/usr/sbin/nologin",
        SERVER_ACCOUNT,
    )
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        with suppress(KeyError):
            return pwd.getpwnam(SERVER_ACCOUNT)
        # fails while another process makes it: the next round finds it
        with suppress(OSError, subprocess.SubprocessError):
            subprocess.run(command, check=False, capture_output=True, timeout=30)
        time.sleep(0.05)
    raise StoreUnavailableError(
        f"PostgreSQL cannot run as root, and the account {SERVER_ACCOUNT!r} could not be created; "
        "create it, or run as another user"
    )


def user_name(uid: int) -> str:
    """The name of a user, or the number of one who has none."""
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def open_the_way(target: Path, uid: int) -> None:
    """Lets a user pass through the directories above `target`: this one alone, and no more than
    pass.
    """
    for directory in target.parents:
        if not _may_pass(directory, uid):
            _let_pass(directory, uid)


def _acl(directory: Path) -> dict[tuple[int, int], int]:
    """Permissions by (tag, id); those of the plain mode where there is no list."""
    mode = directory.stat().st_mode
    plain = {
        (_OWNER, _NOBODY): mode >> 6 & 7,
        (_GROUP, _NOBODY): mode >> 3 & 7,
        (_OTHER, _NOBODY): mode & 7,
    }
    try:
        raw = os.getxattr(directory, _ACL)
    except (OSError, AttributeError):  # none set, or a system that knows none
        return plain
    return {
        (tag, who): permissions for tag, permissions, who in struct.iter_unpack("<HHI", raw[4:])
    }


def _may_pass(directory: Path, uid: int) -> bool:
    acl = _acl(directory)
    if directory.stat().st_uid == uid:
        return bool(acl[_OWNER, _NOBODY] & 1)
    if (_USER, uid) in acl:
        return bool(acl[_USER, uid] & acl.get((_MASK, _NOBODY), 7) & 1)
    return bool(acl[_OTHER, _NOBODY] & 1)


def _let_pass(directory: Path, uid: int) -> None:
    """Grants the passage to one user; to everybody where the file system has no access control
    lists.
    """
    acl = _acl(directory)
    acl[_USER, uid] = acl.get((_USER, uid), 0) | 1
    acl[_MASK, _NOBODY] = acl.get((_MASK, _NOBODY), acl[_GROUP, _NOBODY]) | 1
    raw = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", tag, acl[tag, who], who) for tag, who in sorted(acl)
    )
    try:
        os.setxattr(directory, _ACL, raw)
    except (OSError, AttributeError):
        directory.chmod(directory.stat().st_mode | stat.S_IXOTH)
