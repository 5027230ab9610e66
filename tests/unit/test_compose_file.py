"""What `docker-compose.yml` promises that shows without an engine;
`tests/acceptance/test_compose.py` runs it on one.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from orchestrator import config
from tests.support.commands import ROOT

TEXT = (ROOT / "docker-compose.yml").read_text()
SERVICES: dict[str, Any] = yaml.safe_load(TEXT)["services"]
OURS = ("worker", "dashboard", "launch")
VARIABLE = re.compile(r"(?<!\$)\$\{(\w+):-([^}]*)\}")


def with_defaults(text: str) -> str:
    return VARIABLE.sub(lambda found: found[2], text).replace("$$", "$")


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_without_privileges_and_within_limits(name: str) -> None:
    service = SERVICES[name]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["read_only"] is True
    assert {"max-size", "max-file"} <= service["logging"]["options"].keys(), "logs are rotated"
    assert service["pids_limit"]
    assert "mem_limit" in service
    assert all("size=" in mount for mount in service["tmpfs"]), (
        "a temporary file system may else take half of the memory"
    )


@pytest.mark.parametrize("name", OURS)
def test_our_image_is_asked_of_no_registry(name: str) -> None:
    assert with_defaults(SERVICES[name]["pull_policy"]) == "never"
    assert SERVICES[name]["build"]["dockerfile"] == "docker/Dockerfile"


def test_every_variable_is_documented_with_its_default() -> None:
    reference = (ROOT / "docs" / "reference.md").read_text()
    section = reference.partition("\n## Docker Compose\n")[2]
    rows = [row.split("|")[1:3] for row in section.splitlines() if row.startswith("| `")]
    documented: dict[str, str] = {}
    for names, defaults in rows:
        quoted = re.findall(r"`([^`]*)`", defaults)
        documented |= dict(zip(re.findall(r"`(\w+)`", names), [*quoted, ""], strict=False))
    assert documented == dict(VARIABLE.findall(TEXT))


def test_a_worker_s_command_line_and_its_health_check_name_the_same_file(tmp_path: Path) -> None:
    command = [with_defaults(word) for word in SERVICES["worker"]["command"]]
    settings = config.compose(command[0], command[1:]).host.worker
    assert settings.threads == 1
    kind, script = SERVICES["worker"]["healthcheck"]["test"]
    assert (kind, settings.health_file) == ("CMD-SHELL", Path("/tmp/worker.health"))
    health = tmp_path / "health"
    probe = with_defaults(script).replace(str(settings.health_file), str(health))
    assert str(health) in probe

    def checked() -> int:
        return subprocess.run(["sh", "-c", probe], capture_output=True, timeout=30).returncode

    assert checked() == 1, "not registered yet"
    health.touch()
    assert checked() == 0
    long_ago = time.time() - settings.lease_ttl_s - 60
    os.utime(health, (long_ago, long_ago))
    assert checked() == 1, "not renewed for longer than a lease lasts"


def test_a_launch_names_the_address_at_which_the_dashboard_is_published(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (published,) = (with_defaults(port) for port in SERVICES["dashboard"]["ports"])
    url = with_defaults(SERVICES["launch"]["environment"]["ORCHESTRATOR_DASHBOARD_URL"])
    assert published == f"{url.removeprefix('http://')}:8080"
    monkeypatch.setenv("ORCHESTRATOR_DASHBOARD_URL", url)
    assert (
        config.compose("launch", ["study.name=s", "objective._target_=a.b"]).host.dashboard.url
        == url
    )


def test_how_many_workers_run_is_a_setting_that_a_later_up_keeps() -> None:
    assert SERVICES["worker"]["scale"] == "${WORKERS:-1}"
    page = (ROOT / "docs" / "compose.md").read_text()
    assert re.search(r"^echo WORKERS=3 >> \.env", page, re.M)
    assert "--scale" not in page


def test_the_image_installs_what_the_examples_need_and_never_this_package_from_an_index() -> None:
    """The first RUN that names pyproject.toml, run as a shell runs it."""
    recipe = (ROOT / "docker" / "Dockerfile").read_text()
    found = re.search(r"^RUN (python -c .*?) > requirements.txt$", recipe, re.DOTALL | re.MULTILINE)
    assert found is not None
    command = found[1].replace("python", sys.executable, 1).replace("\\\n", "")
    printed = subprocess.run(
        ["sh", "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\n")
    names = {re.split(r"[<>=\[]", line)[0] for line in printed if line}
    assert {"torch", "hydra-core", "scikit-learn", "torchvision", "plotly"} <= names
    assert "orchestrator" not in names
