"""Finds the source files of an objective without importing them, to detect changes of its code.

For a function: the file of its module, and those of all modules that it imports, directly or
indirectly, by import statements anywhere in the files, except installed modules and Python's own.
For a command: the files that its words name, the modules that Python files among them import, and
the config files of a Hydra app. Imports under a computed name, or from a directory that the program
itself adds to ``sys.path``, are not found.

Whatever the files contain, these functions raise nothing: what cannot be read or found counts as
missing.
"""

# ruff: noqa: PTH112, PTH113, PTH118, PTH119, PTH120, PTH206 - thousands of paths are checked, and pathlib
# raises if one is too long, or if a directory on the way cannot be searched

from __future__ import annotations

import ast
import hashlib
import os
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

from orchestrator import program
from orchestrator.model import JSONValue
from orchestrator.runner.protocol.executable import search_path
from orchestrator.runner.protocol.target import target_of

HYDRA_DIRECTORY: Final = "hydra"
"""The output directory of a Hydra app, in the attempt's run directory."""
MOST_NAMED: Final = 30
"""With more files than this, an attempt's facts contain a single hash instead of one per file."""
_MOST_FILES: Final = 1_000
_MOST_BYTES: Final = 64_000_000  # a larger file is data
_MOST_SOURCE: Final = 1_000_000  # a larger file is generated, so its imports are not followed
_MOST_WALKED: Final = 20_000  # limit for names in a `config_path`, which may be a directory of data
_IMPORT: Final = re.compile(
    r"(?:^|;)[ \t]*(?:import[ \t]+(?P<modules>[^\n#;]+)"
    r"|from[ \t]+(?P<of>\.*[\w.]*)[ \t]+import\b[ \t]*(?P<names>\([^)]{0,5000}\)|[^\n#;]*))",
    re.MULTILINE,
)
_NAME: Final = re.compile(r"[^\W\d][\w.]*")
_PLACEHOLDER: Final = re.compile(r"[{}]")
_IMPORTS_HYDRA: Final = re.compile(r"^[^\n#]*\b(?:from|import)\b[^\n#]*\bhydra\b", re.MULTILINE)
_DECORATES: Final = re.compile(r"^[ \t]*@(?:hydra\.)?main\b", re.MULTILINE)
_CONFIG_PATH: Final = re.compile(r"\bconfig_path[ \t]*=[ \t]*[\"']([^\"'\n]+)[\"']")
_INSTALLED: Final = ("site-packages", "dist-packages")
_NOT_THE_USERS: Final = sys.stdlib_module_names | {"orchestrator"}
# Copies, made before the objective is imported: its additions exist only in the process that
# imports it.
_SYS_PATH: Final = tuple(sys.path)
_META_PATH: Final = tuple(sys.meta_path)


@dataclass(frozen=True)
class Source:
    """The files at one time: the hash of each, by module name, or by path as in the command.

    `hydra_app` means that the program itself is a Hydra app, `hydra_within` that it is one or
    imports one.
    """

    digests: Mapping[str, str]
    hydra_app: bool = False
    hydra_within: bool = False

    @property
    def facts(self) -> dict[str, JSONValue] | None:
        """The form in an attempt's facts: the hash of all files, and of each unless there are many.

        None without files.
        """
        if not self.digests:
            return None
        of_all = hashlib.sha256(
            "".join(f"{name}\0{digest}\n" for name, digest in sorted(self.digests.items())).encode()
        )
        named = {name: digest[:8] for name, digest in sorted(self.digests.items())}
        return {"hash": of_all.hexdigest()[:16], "files": named if len(named) <= MOST_NAMED else {}}


class Sources:
    """The files of one objective, relative to the working directory.

    Reads them again only if one has changed, or if the command names a file that was not there.
    """

    def __init__(self, objective: Mapping[str, JSONValue]) -> None:
        self._words = program.read(objective).words if program.is_program(objective) else None
        self._target = target_of(objective)[0]
        self._last: Source | None = None
        self._stamps: dict[Path, tuple[int, int] | None] = {}
        self._named: list[tuple[str, Path]] = []

    @property
    def file(self) -> Path | None:
        """The first file: the module's, or the script of a command."""
        return next((path for _, path in self._entries(_Finder([]))), None)

    def look(self) -> Source:
        """The current state of all files."""
        named = [] if self._words is None else self._scripts()
        stale = any(_stamp(path) != stamp for path, stamp in self._stamps.items())
        if self._last is None or stale or named != self._named:
            scan = self._scan(imports=True)
            if self._words is not None:
                scan.follow(_wrapper(self._words[0]))
            self._last, self._stamps, self._named = scan.source(), scan.stamps, named
        return self._last

    def look_at_entries(self) -> Source:
        """The current state of the first files only, without what they import; fast."""
        return self._scan(imports=False).source()

    def _scan(self, *, imports: bool) -> _Scan:
        beside = [] if self._words is None else [path.parent for _, path in self._scripts()]
        scan = _Scan(_Finder(beside), imports=imports, configs=imports and self._words is not None)
        for name, path in self._entries(scan.finder):
            scan.add(name, path, entry=True)
        return scan

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
        """The files that the words name, `file` or ``--option=file``.

        The program itself if it is the user's own.
        """
        assert self._words is not None
        found = []
        for index, word in enumerate(self._words):
            path = word if _is_file(word) else word.partition("=")[2]
            if _PLACEHOLDER.search(word) or not _is_file(path):
                continue
            if index or ("/" in word and not _is_of_system(Path(word))):
                found.append((path, Path(path)))
        return found


def source_digest(objectives: Iterable[Mapping[str, JSONValue]]) -> str:
    """A hash of all source files that these objectives have of the user's own; of their content
    alone, so that it is the same on every host with the same code.
    """
    digests: dict[str, str] = {}
    for objective in objectives:
        digests |= Sources(objective).look().digests
    return hashlib.sha256(repr(sorted(digests.items())).encode()).hexdigest()[:16]


class _Finder:
    """Finds the user's modules as Python would, without importing them."""

    def __init__(self, beside: Iterable[Path]) -> None:
        paths = [*map(str, beside), os.getcwd(), *(entry or "." for entry in _SYS_PATH)]  # noqa: PTH109
        resolved = dict.fromkeys(map(os.path.abspath, paths))
        self._roots = [path for path in resolved if os.path.isdir(path) and not _is_installed(path)]
        self._found: dict[tuple[str, bool], list[str]] = {}

    def module(self, name: str, *, installed: bool = False) -> list[tuple[str, Path]]:
        """The module's name and file.

        Empty without a file, or for an installed module unless `installed`.
        """
        return [
            (name, Path(path)) for path in self._places(name, installed) if os.path.isfile(path)
        ]

    def _places(self, name: str, installed: bool) -> list[str]:
        """The file of a module, or the directories of a namespace package.

        Cached, as files share most imports.
        """
        if (found := self._found.get((name, installed))) is None:
            above, _, part = name.rpartition(".")
            found = self._inside(above, part, installed) if above else self._top(name, installed)
            self._found[name, installed] = found
        return found

    def _inside(self, package: str, part: str, installed: bool) -> list[str]:
        above = self._places(package, installed)
        inside = [
            os.path.dirname(path) if os.path.basename(path) == "__init__.py" else path
            for path in above
        ]
        return [path for directory in inside for path in _in_directory(directory, part)][:1]

    def _top(self, name: str, installed: bool) -> list[str]:
        if not installed and name in _NOT_THE_USERS:
            return []
        here = [path for root in self._roots for path in _in_directory(root, name)]
        files = [path for path in here if os.path.isfile(path)]
        return [
            path
            for path in files[:1] or here or _elsewhere(name)
            if installed or not _is_installed(path)
        ]


class _Scan:
    """One scan of files, optionally with their imports and with a Hydra app's config files."""

    def __init__(self, finder: _Finder, *, imports: bool, configs: bool) -> None:
        self.finder = finder
        self._follows = imports
        self._configs = configs
        self.stamps: dict[Path, tuple[int, int] | None] = {}
        self._digests: dict[str, str] = {}
        self._hydra_app = self._hydra_within = False

    def add(self, name: str, path: Path, *, entry: bool = False) -> None:
        """Adds a file, and what it imports."""
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
            if path.suffix == ".py" and len(content) <= _MOST_SOURCE:
                text = content.decode("utf-8", "replace")
                waiting += self._imports(text, _package(name, path)) if self._follows else []
                if b"hydra" in content and _calls_hydra_main(text):
                    self._hydra_within = True
                    self._hydra_app = self._hydra_app or entry
                    waiting += _config_files(path, text) if self._configs else []
            entry = False

    def follow(self, text: str) -> None:
        """Adds what this source text imports, but not the text itself."""
        for name, path in self._imports(text, ""):
            self.add(name, path)

    def source(self) -> Source:
        return Source(self._digests, self._hydra_app, self._hydra_within)

    def _imports(self, text: str, package: str) -> list[tuple[str, Path]]:
        return [found for name in _imported(text, package) for found in self.finder.module(name)]


def _calls_hydra_main(text: str) -> bool:
    """Whether the source decorates a function with ``@hydra.main(…)`` or calls that.

    A mere mention does not count.
    """
    if not _IMPORTS_HYDRA.search(text):
        return False
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # Perhaps for another Python version.
        return _DECORATES.search(text) is not None

    # The names under which `hydra` and `hydra.main` are imported.
    modules: set[str] = set()
    functions: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            modules |= {name.asname or name.name for name in node.names if name.name == "hydra"}
        elif isinstance(node, ast.ImportFrom) and node.module == "hydra":
            functions |= {name.asname or name.name for name in node.names if name.name == "main"}
    for node in nodes:
        match node:
            case ast.Call(func=ast.Name(id=called)) if called in functions:
                return True
            case ast.Call(func=ast.Attribute(value=ast.Name(id=module), attr="main")) if (
                module in modules
            ):
                return True
    return False


def _config_files(script: Path, text: str) -> list[tuple[str, Path]]:
    """The config files of a Hydra app.

    If they share a directory with the code or with runs, only one level of folders (config groups)
    is searched, so that config files which runs have left there are not included.
    """
    found = []
    for config_path in _CONFIG_PATH.findall(text):
        directory = Path(os.path.normpath(script.absolute().parent / config_path))
        crowded = script.absolute().is_relative_to(directory) or Path.cwd().is_relative_to(
            directory
        )
        walked = 0
        for parent, folders, files in os.walk(directory):
            here = Path(parent).relative_to(directory)
            folders[:] = sorted(
                name
                for name in folders
                if not name.startswith(".") and not (crowded and len(here.parts))
            )
            names = [here / name for name in sorted(files) if name.endswith((".yaml", ".yml"))]
            found += [(f"{config_path}/{name}", directory / name) for name in names]
            walked += len(folders) + len(files)
            if len(found) >= _MOST_FILES or walked >= _MOST_WALKED:
                break
    return found


def is_installed(path: Path) -> bool:
    """Whether it belongs to an installed package, or to Python itself."""
    return _is_installed(str(path))


def _is_installed(path: str) -> bool:
    return any(part in _INSTALLED for part in path.split(os.sep)) or any(
        f"{path}{os.sep}".startswith(at) for at in _places()
    )


@cache
def _places() -> frozenset[str]:
    return frozenset(
        sysconfig.get_path(kind) + os.sep
        for kind in ("stdlib", "platstdlib", "purelib", "platlib", "scripts")
    )


def _is_file(word: str) -> bool:
    return os.path.isfile(word)


def _is_of_system(path: Path) -> bool:
    """Whether a program's path is that of an interpreter or system program, not the user's code."""
    places = {path.absolute(), path.resolve()}
    names = ("python", "pypy")
    return any(
        is_installed(place) or place.is_relative_to("/usr") or place.name.startswith(names)
        for place in places
    )


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def _in_directory(directory: str, name: str) -> list[str]:
    """The file of a module in a directory, or the directory of a namespace package."""
    folder = os.path.join(directory, name)
    if os.path.isdir(folder):
        package = os.path.join(folder, "__init__.py")
        if os.path.isfile(package):
            return [package]
    file = f"{folder}.py"
    if os.path.isfile(file):
        return [file]
    return [folder] if os.path.isdir(folder) else []


def _elsewhere(name: str) -> list[str]:
    """Where Python's finders locate an installed top-level module, perhaps an editable one."""
    for finder in _META_PATH:
        try:
            spec = finder.find_spec(name, list(_SYS_PATH) if finder is PathFinder else None)
        except Exception:  # noqa: BLE001 - third-party finders may raise anything
            continue
        if spec is not None:
            if spec.origin is not None and spec.origin.endswith(".py"):
                return [spec.origin]
            return [
                entry for entry in spec.submodule_search_locations or () if os.path.isdir(entry)
            ]
    return []


def _imported(text: str, package: str) -> list[str]:
    """The full names of the modules that the source may import.

    For ``from a import b``, both ``a`` and ``a.b``.
    """
    names: list[str] = []
    for match in _IMPORT.finditer(text.replace("\\\n", " ")):
        if match["modules"] is not None:
            names += [
                found[0] for part in match["modules"].split(",") if (found := _NAME.search(part))
            ]
            continue
        base = _absolute(match["of"], package)
        if base is not None:
            parts = re.sub(r"#[^\n]*", "", match["names"]).strip("()").split(",")
            names += [
                base,
                *(f"{base}.{found[0]}" for part in parts if (found := _NAME.search(part))),
            ]
    full = [name.strip(".") for name in names]
    return list(
        dict.fromkeys(
            ".".join(name.split(".")[: k + 1])
            for name in full
            if name
            for k in range(name.count(".") + 1)
        )
    )


def _absolute(of: str, package: str) -> str | None:
    """The module that ``from OF import …`` means in a module of `package`.

    None if it is outside the package.
    """
    name = of.lstrip(".")
    up = len(of) - len(name)
    if not up:
        return name
    parts = package.split(".") if package else []
    if up - 1 > len(parts):
        return None
    return ".".join([*parts[: len(parts) - (up - 1)], *([name] if name else [])])


def _package(name: str, path: Path) -> str:
    """The package from which relative imports of a module start."""
    if "/" in name or name.endswith(".py"):  # a script
        return ""
    return name if path.name == "__init__.py" else name.rpartition(".")[0]


def _wrapper(word: str) -> str:
    """The script that an installed Python package provides for a command.

    Empty for any other program.
    """
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
    """Whether a command is to run as a Hydra app, by ``objective.hydra`` or else by its source.

    Its script must be decorated as one. If the parameters are appended as overrides, it is enough
    that something the script imports is.
    """
    if not command.may_be_hydra or command.hydra is True:
        return command.may_be_hydra
    sources = Sources({"command": list(command.words)})
    # This runs in every attempt, so imports are scanned only if they can matter.
    return sources.look_at_entries().hydra_app or (
        command.appends_overrides and sources.look().hydra_within
    )


def is_hydra_app(objective: Mapping[str, JSONValue]) -> bool:
    """Whether the objective is a command that is a `hydra_app`, seen from the working directory."""
    return program.is_program(objective) and hydra_app(program.read(objective))
