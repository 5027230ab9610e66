"""The content of a checkpoint directory, and an independent copy of it."""

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
    """Identifies a file's content: while the stamp is the same, so is the content.

    A rename does not change it.
    """

    size: int
    mtime_ns: int
    inode: int


@dataclass(frozen=True)
class Tree:
    """The content of a directory at one time, by path below it (with ``/``).

    `links` has the target of each symbolic link. An absolute target inside the directory is made
    relative, so that in a copy the link leads into the copy.
    """

    files: dict[str, Stamp] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    folders: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.files or self.links)


class UnreadableError(OSError):
    """A file or folder exists but cannot be read."""


def stamp_of(path: Path) -> Stamp | None:
    """The stamp of a regular file, None if there is no such file now."""
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
    """Lists everything in `directory` except sockets, pipes, devices, and what vanishes meanwhile.

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
    """Copies the content of `source` to the new or empty directory `target`.

    False if there is nothing to copy.

    If `source` is being written to, what changed meanwhile is copied again, a few times. The copy
    shares no file with it and is on disk when this returns.

    Raises:
        UnreadableError: Something in `source` cannot be read.
        OSError: `target` cannot be written, or the disk is full.
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
    """Creates the symbolic links of a `Tree` in `directory`, where these names must be free."""
    for name, target in links.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).symlink_to(target)


def _copy_file(source: Path, target: Path) -> bool:
    """Like `shutil.copy2`, but the copy is on disk at the end, and a reflink if possible.

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
                # If it fails, the plain copy below continues from where it stopped.
                with contextlib.suppress(OSError):
                    while os.copy_file_range(reader.fileno(), writer.fileno(), _CHUNK):
                        pass
            shutil.copyfileobj(reader, writer)
        except OSError as error:
            if error.errno in (errno.EIO, errno.ESTALE):
                _refuse(error)
            # Adds the file's name.
            raise OSError(error.errno, error.strerror, str(target)) from error

        writer.flush()
        os.fsync(writer.fileno())
        with contextlib.suppress(OSError):  # not every shared file system allows it
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
