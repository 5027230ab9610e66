"""Checkpoints in an object store: a reader always gets a complete state of the directory.

```
<attempt>/objects/<n>               content of one file; never written twice
<attempt>/manifest-<generation>     the files of one state of the directory; written after all of
them ```
The newest generation and the one before it are kept, because another host may be reading the
latter.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Final

from orchestrator import faults
from orchestrator.runner.files.object_store import ObjectStore, reason
from orchestrator.runner.files.tree import Stamp, Tree, make_links, scan, stamp_of

logger = logging.getLogger(__name__)

LOOK_EVERY_S: Final = 2.0
"""How often the directory is scanned.

It is uploaded once two scans in a row see the same, that is 2 to 4 s after the last write.
"""
PATIENCE_S: Final = 60.0
"""How long a file that keeps changing delays the upload of the others.

After that, they are uploaded without it.
"""
LAST_UPLOAD_S: Final = 600.0
"""How long the end of an attempt waits for its last checkpoints to be uploaded."""
_SLOWEST_S: Final = 60.0
_LAST_PAUSES_S: Final = (1.0, 2.0, 0.0)
_FETCHES: Final = 3
_MANIFEST = re.compile(r"manifest-\d{6,}")


class Uploader:
    """Uploads changes in `directory` to `where`, in a separate thread.

    Retries on errors and logs them once.

    Files that are in the directory at the start count as uploaded: they came from an earlier
    attempt, and still exist there.
    """

    def __init__(self, store: ObjectStore, where: str, directory: Path) -> None:
        self._store = store
        self._where = where
        self._url = f"{store}/{where}"
        self._directory = directory
        self._published = self._seen = scan(directory)
        self._changed_at: float | None = None
        self._objects: dict[Stamp, str] = {}
        self._written: set[str] = set()
        self._put_count = 0
        self._generation = 0  # the last one started; without a manifest it stays incomplete
        self._complete: list[tuple[int, set[str]]] = []  # the last two, and the objects they name
        self._pruned = 0
        self._trouble: str | None = None
        self._ending = threading.Event()
        self._final = False
        self._thread = threading.Thread(target=self._run, name="checkpoint upload", daemon=True)
        self._thread.start()

    def close(self, *, final: bool) -> None:
        """Ends the thread: at once, or, if `final`, after it has uploaded the current files.

        It stops waiting after `LAST_UPLOAD_S`, and when another thread calls it without `final`.
        """
        self._final = final
        self._ending.set()
        given_up_at = time.monotonic() + LAST_UPLOAD_S
        while self._final and self._thread.is_alive():
            if time.monotonic() >= given_up_at:
                logger.warning(
                    "%s: the last checkpoints were not uploaded within %g s",
                    self._url,
                    LAST_UPLOAD_S,
                )
                self._final = False
            self._thread.join(0.1)

    # -------------------------------------------------------------------------------- in the thread

    def _run(self) -> None:
        pause_s = LOOK_EVERY_S
        while not self._ending.wait(pause_s):
            began = time.monotonic()
            well = self._tried(self._look)
            # Leaves a slow store idle half of the time, and tries a broken one less and less often.
            pause_s = (
                max(LOOK_EVERY_S, time.monotonic() - began)
                if well
                else min(2 * pause_s, _SLOWEST_S)
            )
        for pause_s in _LAST_PAUSES_S:
            if not self._final or self._tried(lambda: self._publish(scan(self._directory))):
                return
            time.sleep(pause_s)
        logger.warning("%s: the last checkpoints were not uploaded: %s", self._url, self._trouble)

    def _tried(self, step: Callable[[], None]) -> bool:
        try:
            step()
        except Exception as error:  # noqa: BLE001 - neither the store nor odd files may stop the trial
            if self._trouble is None:
                logger.warning(
                    "%s: cannot upload checkpoints now, will try again: %s",
                    self._url,
                    reason(error),
                )
            self._trouble = reason(error)
            return False
        return True

    def _look(self) -> None:
        """Uploads the directory if everything that changed has stopped changing."""
        tree, before = scan(self._directory), self._seen
        self._seen = tree
        if tree == self._published:
            self._changed_at = None
            return
        if self._changed_at is None:
            self._changed_at = time.monotonic()
        if tree == before:
            self._publish(tree)
        elif time.monotonic() - self._changed_at >= PATIENCE_S:
            files = {
                name: stamp for name, stamp in tree.files.items() if before.files.get(name) == stamp
            }
            busy = tree.files.keys() - files.keys()
            # Of files that are still changing, keep the last uploaded version.
            files |= {
                name: stamp
                for name, stamp in self._published.files.items()
                if name in busy and stamp in self._objects
            }
            self._publish(Tree(files, tree.links, tree.folders))
            self._changed_at = None

    def _publish(self, tree: Tree) -> None:
        """Makes `tree` the newest generation, unless one of its files changes meanwhile.

        Then the next scan will see it.
        """
        if tree == self._published or not self._directory.is_dir():
            return
        for name, stamp in tree.files.items():
            if stamp not in self._objects and not self._put(name, stamp):
                return
        objects = {name: self._objects[stamp] for name, stamp in tree.files.items()}
        faults.step("checkpoints.manifest")
        self._generation += 1
        self._store.write(
            f"{self._where}/manifest-{self._generation:06d}", _manifest(tree, objects)
        )
        self._published, self._changed_at = tree, None
        self._complete = [*self._complete[-1:], (self._generation, set(objects.values()))]
        try:
            self._prune()
        except Exception as error:  # noqa: BLE001 - the upload succeeded; a store may refuse to delete
            logger.debug("%s: cannot remove old checkpoints: %s", self._url, reason(error))

    def _put(self, name: str, stamp: Stamp) -> bool:
        if self._ending.is_set() and not self._final:
            return False
        self._put_count += 1
        path = f"objects/{self._put_count}"
        self._written.add(path)
        try:
            self._store.put(self._directory / name, f"{self._where}/{path}")
        except FileNotFoundError:
            if stamp_of(self._directory / name) is not None:
                raise
        if stamp_of(self._directory / name) != stamp:
            return False
        self._objects[stamp] = path
        return True

    def _prune(self) -> None:
        """Removes all but the last two generations, and the objects that these do not name."""
        while self._pruned + 1 < self._complete[0][0]:
            self._store.remove(f"{self._where}/manifest-{self._pruned + 1:06d}")
            self._pruned += 1
        for path in sorted(self._written.difference(*(named for _, named in self._complete))):
            self._store.remove(f"{self._where}/{path}")
            self._written.discard(path)
        self._objects = {
            stamp: path for stamp, path in self._objects.items() if path in self._written
        }


def fetch(store: ObjectStore, where: str, target: Path) -> bool:
    """Copies the newest complete generation under `where` to the new directory `target`.

    Returns:
        False if there is none, or if it contains no file.

    Raises:
        OSError: `target` cannot be written, or the disk is full.
        Exception: The store cannot be read; whatever its library raises.
    """
    for _ in range(_FETCHES):  # an active writer may remove a generation while it is read
        manifests = sorted(
            (name for name in store.names(where) if _MANIFEST.fullmatch(name)),
            key=lambda name: (len(name), name),
        )
        if not manifests:
            return False
        for name in reversed(manifests):
            shutil.rmtree(target, ignore_errors=True)
            target.mkdir(parents=True)
            try:
                return _fetch_one(store, where, _read_manifest(store, f"{where}/{name}"), target)
            except (FileNotFoundError, ValueError) as error:
                logger.debug("%s/%s/%s is incomplete: %s", store, where, name, error)
    logger.warning("%s/%s: no generation of its checkpoints is complete", store, where)
    return False


def _manifest(tree: Tree, objects: dict[str, str]) -> bytes:
    files = {
        name: {"object": objects[name], "size": stamp.size, "mtime_ns": stamp.mtime_ns}
        for name, stamp in tree.files.items()
    }
    return json.dumps(
        {"files": files, "links": tree.links, "folders": sorted(tree.folders)}
    ).encode()


def _read_manifest(store: ObjectStore, path: str) -> dict[str, Any]:
    content = json.loads(store.read(path))
    if not isinstance(content, dict) or not {"files", "links", "folders"} <= content.keys():
        raise ValueError("not a manifest")
    for name in (*content["files"], *content["links"], *content["folders"]):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise ValueError(f"{name!r} leads out of the directory")
    return content


def _fetch_one(store: ObjectStore, where: str, content: dict[str, Any], target: Path) -> bool:
    for name in content["folders"]:
        (target / name).mkdir(parents=True, exist_ok=True)
    for name, file in content["files"].items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        store.get(f"{where}/{file['object']}", path)
        if path.stat().st_size != file["size"]:
            raise ValueError(f"{name!r} has {path.stat().st_size} bytes instead of {file['size']}")
        os.utime(path, ns=(file["mtime_ns"], file["mtime_ns"]))
    make_links(target, content["links"])
    return bool(content["files"] or content["links"])
