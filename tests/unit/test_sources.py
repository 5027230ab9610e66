"""Which files an objective is made of, and when its code counts as changed."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.cli import provenance
from orchestrator.runner.system import sources
from orchestrator.runner.system.sources import MOST_NAMED, Sources
from orchestrator.store import CodeRow


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with helpers, a script, and what is none of their code."""
    files = {
        "pkg/__init__.py": "",
        "pkg/train.py": (
            "import numpy, lib.net as net\nfrom . import data\nfrom .deep import (  # of\n  "
            "one,\n  two,\n)\n"
        ),
        "pkg/data.py": "def load():\n    from pkg import late  # only when it runs\n",
        "pkg/late.py": "import os, json\n",
        "pkg/deep/__init__.py": "from ..up import *\n",
        "pkg/deep/one.py": "",
        "pkg/up.py": "",
        "pkg/never.py": "",
        "lib/net.py": "import pkg.train\n",
        "script.py": "import argparse; from lib \\\n  import net\n",
        ".venv/lib/python3.11/site-packages/numpy/__init__.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    return tmp_path


PKG = ["pkg", "pkg.data", "pkg.deep", "pkg.deep.one", "pkg.late", "pkg.train", "pkg.up"]


def names(objective: dict[str, Any]) -> list[str]:
    return sorted(Sources(objective).look().digests)


def test_a_function_is_made_of_all_that_its_module_imports_of_the_users_own(project: Path) -> None:
    assert names({"_target_": "pkg.train.fit"}) == sorted(["lib.net", *PKG])
    assert names({"_target_": "pkg.never.fit"}) == ["pkg.never"]
    assert Sources({"_target_": "pkg.train.fit"}).file == project / "pkg" / "train.py"
    assert names({"_target_": "nowhere.train"}) == []
    assert Sources({"_target_": "nowhere.train"}).look().facts is None


def test_an_objective_that_is_installed_is_made_of_its_own_module() -> None:
    assert names({"_target_": "orchestrator.examples.digits.train"}) == [
        "orchestrator.examples.digits"
    ]


def test_a_command_is_made_of_the_files_it_names_and_what_they_import(project: Path) -> None:
    whole = sorted(["lib.net", *PKG])
    assert names({"command": "python script.py --lr {lr}"}) == sorted(["script.py", *whole])
    assert names({"command": "python -m pkg.train"}) == whole
    (project / "run.sh").write_text("python script.py\n")
    (project / "conf.yaml").write_text("a: 1\n")
    assert names({"command": ["sh", "run.sh", "--config=conf.yaml", "x" * 5000, "pkg", "{a}"]}) == [
        "conf.yaml",
        "run.sh",
    ]
    assert names({"command": "./run.sh"}) == ["./run.sh"]
    assert names({"command": "true"}) == []


def test_a_hydra_app_is_made_of_its_config_too_but_not_of_what_runs_left(project: Path) -> None:
    app = "import hydra\n@hydra.main(version_base=None, config_path='{}')\ndef main(cfg): ...\n"
    for name in (
        "conf/a.yaml",
        "conf/model/deep/b.yml",
        "a.yaml",
        "model/b.yaml",
        "outputs/1/2/c.yaml",
        ".hydra/d.yaml",
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("a: 1\n")
    (project / "app.py").write_text(app.format("conf"))
    assert names({"command": "python app.py"}) == ["app.py", "conf/a.yaml", "conf/model/deep/b.yml"]
    assert names({"_target_": "app.main"}) == ["app"], "its config is the study's"
    (project / "app.py").write_text(app.format("."))
    assert names({"command": "python app.py"}) == [
        "./a.yaml",
        "./conf/a.yaml",
        "./model/b.yaml",
        "app.py",
    ]


def test_the_hash_is_of_the_content_and_is_read_again_when_a_file_changes(project: Path) -> None:
    files = Sources({"_target_": "pkg.train.fit"})
    before = files.look()
    assert files.look() is before
    os.utime(project / "pkg" / "late.py", (1, 1))
    assert files.look().facts == before.facts
    (project / "pkg" / "late.py").write_text("import os, json, sys\n")
    after = files.look()
    assert {name for name in after.digests if after.digests[name] != before.digests[name]} == {
        "pkg.late"
    }
    assert after.facts is not None
    assert before.facts is not None
    assert after.facts["hash"] != before.facts["hash"]
    (project / "lib" / "net.py").unlink()
    assert "lib.net" not in files.look().digests


def test_a_script_that_was_not_there_yet_is_found_when_it_comes(project: Path) -> None:
    files = Sources({"command": ["sh", "late.sh", "--with=late.cfg"]})
    assert files.look().facts is None
    (project / "late.sh").write_text("echo 1\n")
    assert list(files.look().digests) == ["late.sh"]
    (project / "late.cfg").write_text("a: 1\n")
    assert sorted(files.look().digests) == ["late.cfg", "late.sh"]
    (project / "late.sh").unlink()
    assert list(files.look().digests) == ["late.cfg"]


def test_of_many_files_one_hash_is_told(project: Path) -> None:
    for number in range(MOST_NAMED + 1):
        (project / f"m{number}.py").write_text("")
    (project / "many.py").write_text(
        "\n".join(f"import m{number}" for number in range(MOST_NAMED + 1))
    )
    known = Sources({"_target_": "many.fit"}).look().facts
    assert known is not None
    assert known["files"] == {}


def test_what_an_import_adds_to_the_path_is_seen_by_nobody_for_a_launch_imports_nothing(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "hidden").mkdir()
    (project / "hidden" / "helper.py").write_text("")
    (project / "finds.py").write_text("import sys\nsys.path.append('hidden')\nimport helper\n")
    before = names({"_target_": "finds.train"})
    monkeypatch.syspath_prepend(str(project / "hidden"))
    monkeypatch.setitem(sys.modules, "helper", None)
    importlib.invalidate_caches()
    assert names({"_target_": "finds.train"}) == before == ["finds"]


def test_odd_files_are_read_as_far_as_they_can_be(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        def find_spec(self, *_: object) -> None:
            raise RuntimeError("a finder of somebody's")

    monkeypatch.setattr(sources, "_META_PATH", (Broken(), *sys.meta_path))
    (project / "odd.py").write_bytes(
        b"def (:\n\x00\xff\nimport pkg.never\nimport " + b"a" * 400 + b"\nimport loop\n"
    )
    (project / "loop.py").symlink_to("loop.py")
    assert names({"_target_": "odd.train"}) == ["odd", "pkg", "pkg.never"]
    assert names({"command": "python odd.py"}) == ["odd.py", "pkg", "pkg.never"]
    (project / "odd.py").write_text("import pkg\n" * 100_000 + "from x import (a,\n" * 100_000)
    assert names({"_target_": "odd.train"}) == ["odd"], (
        "what no person wrote is hashed, not searched"
    )


def test_a_config_directory_full_of_data_is_not_walked_to_its_end(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "_MOST_WALKED", 3)
    for number in range(9):
        (project / "elsewhere" / str(number)).mkdir(parents=True)
        (project / "elsewhere" / str(number) / "a.yaml").write_text("")
    (project / "src").mkdir()
    (project / "src" / "app.py").write_text(
        "import hydra\n@hydra.main(config_path='../elsewhere')\ndef main(cfg): ...\n"
    )
    assert names({"command": "python src/app.py"}) == ["src/app.py"]


# ----------------------------------------------------------------------------------------- in words


def git(commit: str, *, dirty: bool = False) -> dict[str, Any]:
    return {
        "commit": commit * 40,
        "dirty": dirty,
        "diff": "d" if dirty else None,
        "directory": "/repo",
    }


def source(digest: str, **files: str) -> dict[str, Any]:
    return {"hash": digest * 16, "files": files}


def test_a_launch_says_since_which_trials_the_code_has_changed_and_how() -> None:
    now = {"git": git("b"), "source": source("2", train="2", data="1")}
    rows = [
        CodeRow(git("a"), source("1", train="1", data="1"), (*range(24), 30)),
        CodeRow(git("a"), source("2", train="2", data="1"), (24,)),
        CodeRow(git("b", dirty=True), source("3", train="2"), (25, 26)),
        CodeRow(git("b", dirty=True), None, (40,)),
        CodeRow(git("b"), None, (41,)),
        CodeRow(None, None, (42,)),
        CodeRow(None, source("4"), (43,)),
    ]
    assert provenance.change_since(rows, now) == [
        "the objective's code has changed since trials 0–23, 30: train (commit aaaaaaa → bbbbbbb)",
        "the objective's code has changed since trials 25–26: data (not committed)",
        "the objective's code has changed since trial 40: not committed",
        "the objective's code has changed since trial 43: 44444444 → 22222222 (not committed)",
    ], "another commit of the same code is none, nor what nobody knows"


def test_values_of_different_code_are_told_as_such() -> None:
    one = CodeRow(None, source("1", train="1"), (0, 1, 2))
    other = CodeRow(None, source("2", train="2"), (3, 5, 7, 9, 11, 13, 15, 17, 19, 20))
    assert provenance.changes_within([]) is None
    assert provenance.changes_within([one]) is None
    assert provenance.changes_within([one, other]) == (
        "the objective's code is not the same in all trials: trials 0–2 ran code 11111111; "
        "trials 3, 5, 7, 9, 11, 13, 15, 17 and 2 more ran different code: train"
    )
    assert provenance.code_data([one]) == [{"git": None, "source": one.source, "trials": [(0, 2)]}]


def test_a_rerun_names_the_code_as_a_reason() -> None:
    then = {"source": source("1", train="1", data="1"), "git": git("a", dirty=True)}
    now = {"source": source("2", train="2", data="1"), "git": {**git("a", dirty=True), "diff": "e"}}
    assert provenance.differences(then, now) == ["the objective's code (train)"]
    assert provenance.differences({"git": then["git"]}, {**now, "git": then["git"]}) == [], (
        "nobody wrote it down then"
    )
