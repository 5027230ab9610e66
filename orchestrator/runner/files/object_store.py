"""An object store behind an fsspec URL, as checkpoints and artifacts need it.

The only module that imports fsspec.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from orchestrator.errors import ConfigError, did_you_mean
from orchestrator.passwords import mask


class ObjectStore:
    """The objects under one URL, by their path below it.

    Each backend raises its own errors: see `reason`.

    Credentials come from wherever the backend looks for them, such as environment variables and
    files.

    Args:
        url: For instance ``s3://bucket/path``.

    Raises:
        ConfigError: The protocol is unknown, its package is missing, or the backend refuses the
            URL; the message does not name the setting.
    """

    def __init__(self, url: str) -> None:
        # Not with this module: it takes a quarter of a keeper's start, and most have no object
        # store.
        import fsspec
        from fsspec.core import url_to_fs
        from fsspec.registry import known_implementations

        protocol = url.partition("://")[0]
        available = fsspec.available_protocols()
        if protocol not in available:
            raise ConfigError(f"unknown protocol {protocol!r}{did_you_mean(protocol, available)}")
        if set("*?[") & set(url):  # fsspec would treat it as a pattern, and delete whatever matches
            raise ConfigError("the URL must not contain any of * ? [")
        try:
            self._fs, root = url_to_fs(url)
        except ImportError as error:
            package = str(known_implementations.get(protocol, {}).get("class", "")).partition(".")[
                0
            ]
            install = f" (pip install {package})" if package not in ("", "fsspec") else ""
            raise ConfigError(f"{reason(error)}{install}") from error
        except Exception as error:
            raise ConfigError(reason(error)) from error
        self._url = mask(url).rstrip("/")
        self._root: str = root.rstrip("/")
        # Object stores have no folders, and creating one may create a bucket.
        self._has_folders = root.startswith("/")

    def __str__(self) -> str:
        return self._url

    def read(self, path: str) -> bytes:
        """The content of an object.

        Raises:
            FileNotFoundError: There is no such object.
        """
        content: bytes = self._fs.cat_file(self._full(path))
        return content

    def write(self, path: str, content: bytes) -> None:
        """Writes an object, replacing an existing one."""
        self._make_folder(path)
        self._fs.pipe_file(self._full(path), content)

    def put(self, file: Path, path: str) -> None:
        """Uploads a file."""
        self._make_folder(path)
        self._fs.put_file(str(file), self._full(path))

    def get(self, path: str, file: Path) -> None:
        """Downloads an object into a file.

        Raises:
            FileNotFoundError: There is no such object.
        """
        self._fs.get_file(self._full(path), str(file))

    def open(self, path: str) -> BinaryIO:
        """Opens an object for reading piece by piece.

        Raises:
            FileNotFoundError: There is no such object.
        """
        opened: BinaryIO = self._fs.open(self._full(path), "rb")
        return opened

    def names(self, path: str) -> list[str]:
        """The names directly under a path, unordered, including those that others just wrote."""
        self._fs.invalidate_cache()
        try:
            found = self._fs.ls(self._full(path), detail=False)
        except FileNotFoundError:
            return []
        return [str(name).rstrip("/").rpartition("/")[2] for name in found]

    def size(self, path: str) -> int | None:
        """How many bytes an object has, or everything under a path; None if there is nothing."""
        self._fs.invalidate_cache()
        full = self._full(path)
        return int(self._fs.du(full)) if self._fs.exists(full) else None

    def remove(self, path: str) -> None:
        """Removes an object, or everything under a path; it is not an error if there is nothing."""
        try:
            self._fs.rm(self._full(path), recursive=True)
        except FileNotFoundError:
            pass
        finally:
            self._fs.invalidate_cache()

    def _full(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _make_folder(self, path: str) -> None:
        if self._has_folders:
            self._fs.makedirs(self._full(path).rpartition("/")[0], exist_ok=True)


def reason(error: BaseException) -> str:
    """The first line of an error's message, without passwords; its type if it has no message."""
    lines = str(error).strip().splitlines()
    return mask(lines[0]) if lines else type(error).__name__
