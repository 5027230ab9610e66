"""The source files that an objective is made of, by which it is known whether its code has changed. Nothing is imported.

Of a function: the file of its module, and of every module that it imports, by import statements anywhere in them, and that is
neither installed nor Python's own. Of a command: the files that its words name, what Python files among them import likewise,
and the config files of a Hydra app. What a program imports by a name that it puts together as it runs is not seen.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from orchestrator import program
from orchestrator.model import JSONValue
from orchestrator.runner.executable import search_path
from orchestrator.runner.target import target_of

HYDRA_DIRECTORY: Final = "hydra"
"""Where in its run directory an attempt of a Hydra app has its output directory."""
MOST_NAMED: Final = 30
"""Of more files than this the facts of an attempt hold one hash for all, not one for each."""
_MOST_FILES: Final = 2_000
_MOST_BYTES: Final = 64_000_000  # a larger file is data
_IMPORT: Final = re.compile(
    r"(?:^|;)[ \t]*(?:import[ \t]+(?P<modules>[^\n#;]+)"
    r"|from[ \t]+(?P<of>\.*[\w.]*)[ \t]+import\b[ \t]*(?P<names>\([^)]*\)|[^\n#;]*))",
    re.MULTILINE,
)
_NAME: Final = re.compile(r"[^\W\d][\w.]*")
_PLACEHOLDER: Final = re.compile(r"[{}]")
_HYDRA_APP: Final = re.compile(r"^[ \t]*@main\b|\bhydra\.main[ \t]*\(", re.MULTILINE)
_IMPORTS_HYDRA: Final = re.compile(r"^[ \t]*(?:import|from)[ \t]+hydra\b", re.MULTILINE)
_CONFIG_PATH: Final = re.compile(r"\bconfig_path[ \t]*=[ \t]*[\"']([^\"'\n]+)[\"']")
_INSTALLED: Final = ("site-packages", "dist-packages")


@dataclass(frozen=True)
class Source:
    """What the files were at one moment: the hash of each by its module's name, or its path as the command has it.

    `hydra_app` says that the program itself is Hydra's, `hydra_within` that it or something that it imports is.
    """

    digests: Mapping[str, str]
    hydra_app: bool = False
    hydra_within: bool = False

    @property
    def facts(self) -> dict[str, JSONValue] | None:
        """What the facts of an attempt say of it: the hash of all, and of each unless they are many; None without any file."""
        if not self.digests:
            return None
        of_all = hashlib.sha256("".join(f"{name}\0{digest}\n" for name, digest in sorted(self.digests.items())).encode())
        named = {name: digest[:8] for name, digest in sorted(self.digests.items())}
        return {"hash": of_all.hexdigest()[:16], "files": named if len(named) <= MOST_NAMED else {}}


class Sources:
    """The files of one objective, as seen from the working directory; read again only if one of them is another than before."""

    def __init__(self, objective: Mapping[str, JSONValue]) -> None:
        self._words = program.read(objective).words if program.is_program(objective) else None
        self._target = target_of(objective)[0]
        self._known: Source | None = None
        self._stamps: dict[Path, tuple[int, int] | None] = {}

    @property
    def file(self) -> Path | None:
        """The first of them: the module's file, or the script of a command."""
        return next((path for _, path in self._entries(_Finder([]))), None)

    def look(self) -> Source:
        """What they are now."""
        if self._known is None or any(_stamp(path) != stamp for path, stamp in self._stamps.items()):
            beside = [] if self._words is None else [path.parent for _, path in self._scripts()]
            scan = _Scan(_Finder(beside), configs=self._words is not None)
            for name, path in self._entries(scan.finder):
                scan.add(name, path, entry=True)
            if self._words is not None:
                scan.follow(_wrapper(self._words[0]))
            self._known, self._stamps = scan.source(), scan.stamps
        return self._known

    def _entries(self, finder: _Finder) -> Iterator[tuple[str, Path]]:
        if self._words is not None:
            yield from self._scripts()
            for before, word in zip(self._words, self._words[1:], strict=False):
                if before == "-m" and _NAME.fullmatch(word):
                    yield from finder.module(word)
                    yield from finder.module(f"{word}.__main__")
            return
        parts = self._target.split(".")
        for count in range(len(parts) - 1, 0, -1):
            if found := finder.module(".".join(parts[:count]), installed=True):
                yield from found
                return

    def _scripts(self) -> list[tuple[str, Path]]:
        """The files that the words name, `file` or ``--option=file``; the program itself if it is the user's own."""
        assert self._words is not None
        found = []
        for index, word in enumerate(self._words):
            path = word if _is_file(word) else word.partition("=")[2]
            if not _PLACEHOLDER.search(word) and _is_file(path) and (index or ("/" in word and not _is_of_system(Path(word)))):
                found.append((path, Path(path)))
        return found


class _Finder:
    """Finds modules of the user's own as Python would, from the working directory or beside a script, without importing any."""

    def __init__(self, beside: Iterable[Path]) -> None:
        paths = [*beside, Path.cwd(), *(Path(entry or ".") for entry in sys.path)]
        resolved = dict.fromkeys(path.absolute() for path in paths)
        self._roots = [path for path in resolved if path.is_dir() and not is_installed(path)]
        self._tops: dict[str, list[Path]] = {}

    def module(self, name: str, *, installed: bool = False) -> list[tuple[str, Path]]:
        """The module's name and file, if it has one; nothing for one that is not the user's own, unless `installed` counts."""
        top, *rest = name.split(".")
        found = self._top(top, installed=installed)
        for part in rest:
            inside = [path.parent if path.name == "__init__.py" else path for path in found]
            found = [path for directory in inside if directory.is_dir() for path in _in_directory(directory, part)][:1]
        return [(name, path) for path in found if path.is_file()]

    def _top(self, name: str, *, installed: bool) -> list[Path]:
        if not installed and name in (*sys.stdlib_module_names, "orchestrator"):
            return []
        if name not in self._tops:
            here = [path for root in self._roots for path in _in_directory(root, name)]
            files = [path for path in here if path.is_file()]
            self._tops[name] = files[:1] or here or _elsewhere(name)
        return [path for path in self._tops[name] if installed or not is_installed(path)]


class _Scan:
    """One look at all files; with `configs` also at the config files of Hydra apps among them."""

    def __init__(self, finder: _Finder, *, configs: bool) -> None:
        self.finder = finder
        self._configs = configs
        self.stamps: dict[Path, tuple[int, int] | None] = {}
        self._digests: dict[str, str] = {}
        self._hydra_app = self._hydra_within = False

    def add(self, name: str, path: Path, *, entry: bool = False) -> None:
        """Takes in a file, and what it imports."""
        waiting = [(name, path)]
        while waiting and len(self._digests) < _MOST_FILES:
            name, path = waiting.pop()
            self.stamps[path] = stamp = _stamp(path)
            if name in self._digests or stamp is None or stamp[1] > _MOST_BYTES:
                continue
            try:
                content = path.read_bytes()
            except OSError:
                continue
            self._digests[name] = hashlib.sha256(content).hexdigest()
            if path.suffix == ".py":
                text = content.decode("utf-8", "replace")
                waiting += self._imports(text, _package(name, path))
                if _HYDRA_APP.search(text) and _IMPORTS_HYDRA.search(text):
                    self._hydra_within = True
                    self._hydra_app = self._hydra_app or entry
                    waiting += _config_files(path, text) if self._configs else []
            entry = False

    def follow(self, text: str) -> None:
        """Takes in what this source imports, not itself."""
        for name, path in self._imports(text, ""):
            self.add(name, path)

    def source(self) -> Source:
        return Source(self._digests, self._hydra_app, self._hydra_within)

    def _imports(self, text: str, package: str) -> list[tuple[str, Path]]:
        return [found for name in _imported(text, package) for found in self.finder.module(name)]


def _config_files(script: Path, text: str) -> list[tuple[str, Path]]:
    """The config files of a Hydra app. Where it keeps them with all else, as deep as groups go, not where runs leave some."""
    found = []
    for said in _CONFIG_PATH.findall(text):
        directory = Path(os.path.normpath(script.absolute().parent / said))
        crowded = script.absolute().is_relative_to(directory) or Path.cwd().is_relative_to(directory)
        for parent, folders, files in os.walk(directory):
            here = Path(parent).relative_to(directory)
            folders[:] = sorted(name for name in folders if not name.startswith(".") and not (crowded and len(here.parts)))
            names = [here / name for name in sorted(files) if name.endswith((".yaml", ".yml"))]
            found += [(f"{said}/{name}", directory / name) for name in names]
            if len(found) >= _MOST_FILES:
                break
    return found


def is_installed(path: Path) -> bool:
    """Whether it belongs to a package that was installed, or to Python itself."""
    return any(part in _INSTALLED for part in path.parts) or any(path.is_relative_to(root) for root in _places())


@cache
def _places() -> frozenset[str]:
    return frozenset(sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib", "scripts"))


def _is_file(word: str) -> bool:
    return os.path.isfile(word)  # noqa: PTH113 - a word may be too long for a path, of which pathlib makes an error


def _is_of_system(path: Path) -> bool:
    """Whether a program that is named by its path is an interpreter or the like, and not the user's code."""
    places = {path.absolute(), path.resolve()}
    names = ("python", "pypy")
    return any(is_installed(place) or place.is_relative_to("/usr") or place.name.startswith(names) for place in places)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _in_directory(directory: Path, name: str) -> list[Path]:
    """The file of a module there, or the directory of a namespace package."""
    for path in (directory / name / "__init__.py", directory / f"{name}.py"):
        if path.is_file():
            return [path]
    return [directory / name] if (directory / name).is_dir() else []


def _elsewhere(name: str) -> list[Path]:
    """Where Python's finders have a top-level module: one that is installed, perhaps as a link to the user's own directory."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return []
    if spec is None:
        return []
    if spec.origin is not None and spec.origin.endswith(".py"):
        return [Path(spec.origin)]
    return [Path(entry) for entry in spec.submodule_search_locations or () if os.path.isdir(entry)]  # noqa: PTH112


def _imported(text: str, package: str) -> list[str]:
    """The full names of the modules that the source may import: of ``from a import b``, both ``a`` and ``a.b``."""
    names: list[str] = []
    for match in _IMPORT.finditer(text.replace("\\\n", " ")):
        if match["modules"] is not None:
            names += [found[0] for part in match["modules"].split(",") if (found := _NAME.search(part))]
            continue
        base = _absolute(match["of"], package)
        if base is not None:
            parts = re.sub(r"#[^\n]*", "", match["names"]).strip("()").split(",")
            names += [base, *(f"{base}.{found[0]}" for part in parts if (found := _NAME.search(part)))]
    full = [name.strip(".") for name in names]
    return list(dict.fromkeys(".".join(name.split(".")[: k + 1]) for name in full if name for k in range(name.count(".") + 1)))


def _absolute(of: str, package: str) -> str | None:
    """The module that ``from OF import …`` means in a module of `package`; None if it leads out of it."""
    name = of.lstrip(".")
    up = len(of) - len(name)
    if not up:
        return name
    parts = package.split(".") if package else []
    if up - 1 > len(parts):
        return None
    return ".".join([*parts[: len(parts) - (up - 1)], *([name] if name else [])])


def _package(name: str, path: Path) -> str:
    """The package that relative imports of a module start from."""
    if "/" in name or name.endswith(".py"):  # a script
        return ""
    return name if path.name == "__init__.py" else name.rpartition(".")[0]


def _wrapper(word: str) -> str:
    """The script that the installation of a Python package made for a command; empty if the word starts anything else."""
    found = None if "/" in word else shutil.which(word, path=search_path())
    if found is None:
        return ""
    try:
        with Path(found).open("rb") as file:
            first = file.readline(200)
            script = first.startswith(b"#!") and b"python" in first
            return file.read(64_000).decode("utf-8", "replace") if script else ""
    except OSError:
        return ""


def hydra_app(command: program.Program) -> bool:
    """Whether a command is to be run as an app of Hydra's, by what it says itself or by how its source looks.

    Its script must be decorated as one; where the parameters are appended for Hydra anyway, what that imports may be.
    """
    if not command.may_be_hydra or command.hydra is True:
        return command.may_be_hydra
    source = Sources({"command": list(command.words)}).look()
    return source.hydra_within if command.appends_overrides else source.hydra_app


def is_hydra_app(objective: Mapping[str, JSONValue]) -> bool:
    """Whether the objective is a command that is run as `hydra_app` says, from the working directory."""
    return program.is_program(objective) and hydra_app(program.read(objective))
