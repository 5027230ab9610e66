"""A file of the user's that hides a module which workers import."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.cli.preflight import check_shadows
from orchestrator.errors import ConfigError
from tests.support.commands import ROOT


@pytest.mark.parametrize("name", ["optuna.py", "json.py", "omegaconf/__init__.py"])
def test_a_module_that_hides_a_package_or_the_standard_library_is_refused(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("")
    with pytest.raises(ConfigError) as refused:
        check_shadows(tmp_path)
    assert str(refused.value) == (
        f"{name} in the working directory {tmp_path} hides the installed module "
        f"{name.removesuffix('.py').removesuffix('/__init__')!r}, which workers need; rename it"
    )


def test_other_modules_and_directories_without_a_package_are_left_alone(tmp_path: Path) -> None:
    for name in ("train.py", "optuna_study.py", "optuna/config.yaml", "hydra/launcher/a.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text("")
    check_shadows(tmp_path)


def test_a_checkout_of_what_is_imported_hides_nothing() -> None:
    check_shadows(ROOT)


def test_a_clone_beside_the_installed_program_hides_nothing(tmp_path: Path) -> None:
    """As in the quick start, which installs a copy and launches in the clone."""
    clone = tmp_path / "orchestrator" / "__init__.py"
    clone.parent.mkdir()
    clone.write_bytes((ROOT / "orchestrator" / "__init__.py").read_bytes())
    check_shadows(tmp_path)
    clone.write_text("")
    with pytest.raises(ConfigError, match="hides the installed module 'orchestrator'"):
        check_shadows(tmp_path)
