"""What is in a checkpoint directory, and a copy of it that no writer of the original can touch."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

_LOOKS: Final = 3
_CHUNK: Final = 1 << 30


@dataclass(frozen=True)
class Stamp:
    """As long as it stays the same, so does the content of the file, wherever it was renamed to."""

    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True)
class Tree:
    """The content of a directory at one look, by path below it (with ``/``).

    `links` gives where each symbolic link leads; one that leads into the directory by an absolute
    path has a relative one here, so that it leads into the copy.
    """

    files: dict[str, Stamp] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    folders: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.files or self.links)


class UnreadableError(OSError):
    """A file or folder is there and cannot be read."""


def stamp_of(path: Path) -> Stamp | None:
    """The stamp of a regular file, None if there is none now."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    return (
        Stamp(status.st_size, status.st_mtime_ns, status.st_ino)
        if stat.S_ISREG(status.st_mode)
        else None
    )


def scan(directory: Path) -> Tree:
    """Looks at all that is in `directory`; sockets, pipes and devices are left out, and what
    vanishes meanwhile is as well.

    Raises:
        UnreadableError: A folder cannot be listed.
    """
    files: dict[str, Stamp] = {}
    links: dict[str, str] = {}
    folders: set[str] = set()
    for top, below, names in os.walk(directory, onerror=_refuse_unless_gone):
        for name in (*below, *names):
            path = Path(top, name)
            relative = path.relative_to(directory).as_posix()
            with contextlib.suppress(FileNotFoundError):
                if path.is_symlink():
                    links[relative] = _inward(os.readlink(path), path, directory)  # noqa: PTH115 - as written, not tidied
                elif path.is_dir():
                    folders.add(relative)
                elif (stamp := stamp_of(path)) is not None:
                    files[relative] = stamp
    return Tree(files, links, frozenset(folders))


def copy_tree(source: Path, target: Path) -> bool:
    """Copies what is in `source` to the new or empty directory `target`; False if there is nothing
    to copy.

    A writer may be at work in `source`: what changed meanwhile is copied again, a few times. The
    copy shares no file with it and is on disk when this returns.

    Raises:
        UnreadableError: Something in `source` cannot be read.
        OSError: `target` cannot be written; the disk is full.
    """
    copied: dict[str, Stamp] = {}
    for _ in range(_LOOKS):
        tree = scan(source)
        for name in copied.keys() - tree.files.keys():
            del copied[name]
            (target / name).unlink()
        for name, stamp in tree.files.items():
            if copied.get(name) != stamp and _copy_file(source / name, target / name):
                copied[name] = stamp
        if scan(source) == tree:
            break
    for name in sorted(tree.folders):
        (target / name).mkdir(parents=True, exist_ok=True)
    make_links(target, tree.links)
    return bool(copied or tree.links)


def make_links(directory: Path, links: dict[str, str]) -> None:
    """Makes the symbolic links of a `Tree` in `directory`, where nothing has their names yet."""
    for name, target in links.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).symlink_to(target)


def _copy_file(source: Path, target: Path) -> bool:
    """As `shutil.copy2`, but on disk when it returns, and by reference where the file system can.
    False if `source` is gone.
    """
    try:
        reader = source.open("rb")
    except FileNotFoundError:
        return False
    except OSError as error:
        _refuse(error)
    target.parent.mkdir(parents=True, exist_ok=True)
    with reader, target.open("wb") as writer:
        status = os.fstat(reader.fileno())
        try:
            if sys.platform == "linux":
                # what it cannot do is left to the plain copy, which goes on from there
                with contextlib.suppress(OSError):
                    while os.copy_file_range(reader.fileno(), writer.fileno(), _CHUNK):
                        pass
            shutil.copyfileobj(reader, writer)
        except OSError as error:
            if error.errno in (errno.EIO, errno.ESTALE):
                _refuse(error)
            # the system names no file here
            raise OSError(error.errno, error.strerror, str(target)) from error
        writer.flush()
        os.fsync(writer.fileno())
        with contextlib.suppress(OSError):  # not every shared file system lets us
            os.fchmod(writer.fileno(), stat.S_IMODE(status.st_mode))
            os.utime(writer.fileno(), ns=(status.st_atime_ns, status.st_mtime_ns))
    return True


def _inward(target: str, link: Path, directory: Path) -> str:
    if target.startswith("/"):
        for root in (directory, directory.resolve()):
            if Path(target).is_relative_to(root):
                return os.path.relpath(target, root / link.parent.relative_to(directory))
    return target


def _refuse(error: OSError) -> NoReturn:
    raise UnreadableError(error.errno, error.strerror, error.filename) from error


def _refuse_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        _refuse(error)
