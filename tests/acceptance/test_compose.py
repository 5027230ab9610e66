"""`docker compose up` on a real engine: workers, dashboard, launches, the user's own code, and what
may go wrong.

What shows without an engine is in `tests/unit/test_compose_file.py`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from orchestrator import config
from tests.support.grammar import LINES, write_grammar_experiment
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
IMAGE = "orchestrator:test"
SMALL = ("budget.trials=6", "budget.per_cell=1", "train.epochs=1")


def engine_missing() -> str | None:
    """Why there is no engine to test with, None if there is one."""
    for command in (
        ["docker", "version", "--format", "{{.Server.Version}}"],
        ["docker", "compose", "version"],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{' '.join(command)}: {error}"
        if done.returncode != 0:
            return f"{' '.join(command)}: {done.stderr.strip()}"
    return None


MISSING = engine_missing()
pytestmark = [
    pytest.mark.docker,
    pytest.mark.acceptance,
    pytest.mark.timeout(1200),
    pytest.mark.xdist_group("compose"),
    pytest.mark.skipif(MISSING is not None, reason=f"no Docker engine with Compose: {MISSING}"),
]


class Project:
    """A copy of the Compose project under a name of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._environment = {
            **os.environ,
            "COMPOSE_PROJECT_NAME": f"test-{uuid.uuid4().hex[:8]}",
            "ORCHESTRATOR_IMAGE": IMAGE,
            "DASHBOARD_PORT": str(self.port),
            "USER_CODE": str(folder / "code"),
        }

    def compose(self, *arguments: str, timeout: float = 300) -> str:
        done = self.tried(*arguments, timeout=timeout)
        assert done.returncode == 0, f"{done.args}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def tried(
        self, *arguments: str, timeout: float = 300, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """What `docker compose` says, whatever its exit code."""
        return subprocess.run(
            ["docker", "compose", *arguments],
            cwd=self.folder,
            env={**self._environment, **environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def started(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["docker", "compose", *arguments],
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def shell(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def launch(self, *overrides: str) -> str:
        return self.compose("run", "--rm", "-T", "launch", *overrides)

    def orchestrator(self, *words: str) -> str:
        return self.compose("exec", "-T", "dashboard", "orchestrator", *words)

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "-q", service).split()

    def health(self, service: str) -> set[str]:
        return {
            inspected(container)["State"]["Health"]["Status"]
            for container in self.containers(service)
        }


def inspected(container: str) -> dict[str, Any]:
    told = subprocess.run(
        ["docker", "inspect", container], capture_output=True, text=True, check=True
    ).stdout
    described: dict[str, Any] = json.loads(told)[0]
    return described


@pytest.fixture(scope="module")
def image() -> str:
    wheels = subprocess.run(
        ["pip", "config", "get", "global.find-links"], capture_output=True, text=True, check=False
    ).stdout.strip()
    context = ["--build-context", f"wheels={wheels}"] if wheels and Path(wheels).is_dir() else []
    command = ["docker", "build", "-q", "-f", "docker/Dockerfile", "-t", IMAGE, *context, "."]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=1000, check=False
    )
    assert done.returncode == 0, done.stderr
    return IMAGE


@pytest.fixture(scope="module")
def project(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("compose")
    shutil.copy(ROOT / "docker-compose.yml", folder)
    shutil.copytree(ROOT / "docker", folder / "docker")
    write_user_code(folder / "code")
    make_secret = re.search(
        r"^#\s+(install .*secrets/db_password)$", (ROOT / "docker-compose.yml").read_text(), re.M
    )
    assert make_secret, "docker-compose.yml shows how to make the password"
    subprocess.run(["bash", "-c", make_secret[1]], cwd=folder, check=True)

    (folder / ".env").write_text("WORKERS=2\n")
    project = Project(folder)
    try:
        project.compose("up", "-d", "--wait")
        yield project
    finally:
        project.compose("--profile", "launch", "down", "--volumes", "--remove-orphans")


def write_user_code(folder: Path) -> None:
    (folder / "conf" / "experiment").mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "mine.py").write_text(
        "import time\n\n\n"
        "def parabola(cfg, trial):\n    return (cfg.x - cfg.target) ** 2\n\n\n"
        "def slow(cfg, trial):\n    time.sleep(3)\n    return parabola(cfg, trial)\n"
    )
    (folder / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\n"
        "study: {name: mine, direction: minimize}\n"
        "objective: {_target_: mine.parabola}\n"
        "params: {x: 0.0, target: 1}\n"
        "grid: {target: [1, 2]}\n"
        "search: {x: 'interval(-3, 3)'}\n"
        "budget: {trials: 4, per_cell: 2}\n"
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def trials_done(said: str) -> str:
    return str(re.findall(r"\b(\d+/\d+) trials", said)[-1])


def test_a_launch_takes_overrides_and_is_done_by_the_workers(project: Project) -> None:
    assert len(project.containers("worker")) == 2
    assert project.health("worker") == {"healthy"}
    search = "optim.lr=tag(log, interval(1e-3, 1e-1))"
    said = project.launch(
        "experiment=digits",
        "sampler=gp",
        "data.batch_size=64,128",
        search,
        "budget.trials=4",
        *SMALL[1:],
    )
    assert trials_done(said) == "4/4"
    assert "finished" in said
    assert f"browse it: http://127.0.0.1:{project.port}\n" in said


def test_another_up_keeps_the_workers_that_there_are(project: Project) -> None:
    before = project.containers("worker")
    project.compose("up", "-d")
    assert sorted(project.containers("worker")) == sorted(before)


def test_workers_survive_a_restart_of_the_database_and_the_study_goes_on(project: Project) -> None:
    study = ("experiment=digits", "study.name=restarted", *SMALL)
    assert trials_done(project.launch(*study)) == "6/6"
    before = project.containers("worker")
    project.compose("restart", "db")
    assert trials_done(project.launch(*study, "budget.trials=8")) == "8/8"
    assert project.containers("worker") == before
    assert [inspected(container)["RestartCount"] for container in before] == [0, 0]


def test_a_killed_worker_comes_back_and_becomes_healthy(project: Project) -> None:
    container = project.containers("worker")[0]
    killed = ["docker", "exec", container, "sh", "-c", "kill -9 $(cat /proc/1/task/1/children)"]
    subprocess.run(killed, capture_output=True, check=False)
    wait_until(lambda: inspected(container)["RestartCount"] == 1, 60)
    wait_until(lambda: project.health("worker") == {"healthy"}, 120)


def test_mounted_code_and_config_of_the_user_run(project: Project) -> None:
    said = project.launch("--config-dir", "conf", "experiment=mine")
    assert trials_done(said) == "4/4"


def test_code_that_the_containers_may_not_read_is_one_clear_error(project: Project) -> None:
    code = project.folder / "code"
    code.chmod(0o700)
    try:
        config_refused = project.tried(
            "run", "--rm", "-T", "launch", "--config-dir", "conf", "experiment=mine"
        )
        code_refused = project.tried(
            "run",
            "--rm",
            "-T",
            "launch",
            "study.name=closed",
            "objective._target_=mine.slow",
            "budget.trials=1",
        )
    finally:
        code.chmod(0o755)
    for refused in (config_refused, code_refused):
        (said,) = [
            line for line in refused.stderr.splitlines() if line.startswith("orchestrator: error: ")
        ]
        assert "/workspace cannot be read by user 10001: its mode is 0700" in said
        assert "Traceback" not in refused.stderr


def test_a_path_of_code_that_is_not_there_is_no_empty_folder(project: Project) -> None:
    typo = project.folder / "cdoe"
    refused = project.tried("run", "--rm", "-T", "launch", "--help", USER_CODE=str(typo))
    assert refused.returncode != 0
    assert str(typo) in refused.stderr
    assert not typo.exists()


def test_what_is_best_comes_out_of_a_container_that_cannot_write(project: Project) -> None:
    project.launch("--config-dir", "conf", "experiment=mine")
    refused = project.tried(
        "exec", "-T", "dashboard", "orchestrator", "best", "study.name=mine", "out=best.yaml"
    )
    assert refused.returncode == 1
    assert "out=best.yaml: Read-only file system (/workspace); " in refused.stderr
    assert "out=- to print the params" in refused.stderr
    printed = yaml.safe_load(project.orchestrator("best", "study.name=mine", "out=-"))
    assert set(printed) == {"x", "target"}


def test_no_registry_is_asked_for_our_image(project: Project) -> None:
    absent = f"absent-{uuid.uuid4().hex[:8]}"
    refused = project.tried(
        "up",
        "-d",
        "--no-deps",
        "--no-build",
        "dashboard",
        ORCHESTRATOR_IMAGE=absent,
        COMPOSE_PROJECT_NAME=absent,
    )
    project.tried("down", "--volumes", COMPOSE_PROJECT_NAME=absent)
    assert refused.returncode != 0
    assert f"No such image: {absent}" in refused.stderr
    assert "Pulling" not in refused.stderr


def test_a_launch_outlasts_down_and_goes_on_after_the_next_up(project: Project) -> None:
    words = (
        "--config-dir",
        "conf",
        "experiment=mine",
        "study.name=outlasts",
        "objective._target_=mine.slow",
    )
    launch = project.started("run", "--rm", "-T", "launch", *words, "budget.trials=16")
    try:
        status = ("exec", "-T", "dashboard", "orchestrator", "status", "study.name=outlasts")
        wait_until(lambda: "2 running" in project.tried(*status).stdout, 120)
        assert "still in use" in project.tried("down").stderr
        assert launch.poll() is None
        project.compose("up", "-d", "--wait")
        said, _ = launch.communicate(timeout=240)
    finally:
        launch.kill()
    assert launch.returncode == 0, said
    assert "trying again" in said
    assert trials_done(said) == "16/16"


def test_the_override_grammar_reaches_the_program_as_it_is_typed_in_a_shell(
    project: Project,
) -> None:
    write_grammar_experiment(project.folder / "code" / "conf")
    words = " ".join(line.bash for line in LINES.values())
    here = config.compose(
        "launch",
        ["experiment=grammar", *shlex.split(words)],
        config_dir=str(project.folder / "code" / "conf"),
    )
    typed = (
        f"docker compose run --rm -T launch --config-dir conf experiment=grammar {words} --cfg job"
    )
    said = yaml.safe_load(project.shell(typed))
    for section in ("grid", "search", "params"):
        assert said[section] == OmegaConf.to_container(here.config[section])


def test_code_baked_into_an_image_of_the_user_s_own_imports(project: Project) -> None:
    tag = f"{IMAGE}-baked"
    recipe = f"FROM {IMAGE}\nCOPY mine.py /opt/code/\n"
    (project.folder / "Dockerfile.mine").write_text(recipe)
    subprocess.run(
        [
            "docker",
            "build",
            "-q",
            "-f",
            str(project.folder / "Dockerfile.mine"),
            "-t",
            tag,
            str(project.folder / "code"),
        ],
        check=True,
        capture_output=True,
        timeout=120,
    )
    probe = (
        "import mine, orchestrator; assert '/opt/orchestrator/' in orchestrator.__file__; "
        "print(mine.__file__)"
    )
    command = ["docker", "run", "--rm", "--entrypoint", "python", tag, "-c", probe]
    assert (
        subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        == "/opt/code/mine.py"
    )


def test_the_dashboard_shows_the_study_on_this_host_only(project: Project) -> None:
    project.launch("experiment=digits", "study.name=shown", *SMALL)
    token = (project.folder / "secrets" / "dashboard_password").read_text()
    url = f"http://127.0.0.1:{project.port}/api/studies"
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(url, timeout=30)
    with urllib.request.urlopen(request, timeout=30) as answer:
        names = {study["study_name"] for study in json.load(answer)["study_summaries"]}
    assert "shown" in names
    assert project.compose("port", "dashboard", "8080").strip() == f"127.0.0.1:{project.port}"


def test_containers_run_without_privileges_and_the_password_is_in_a_file_only(
    project: Project,
) -> None:
    passwords = [
        (project.folder / "secrets" / f"{name}_password").read_text().strip()
        for name in ("db", "dashboard")
    ]
    assert [len(password) for password in passwords] == [48, 48]
    for service in ("db", "worker", "dashboard"):
        told = inspected(project.containers(service)[0])
        assert not any(password in json.dumps(told) for password in passwords)
        host = told["HostConfig"]
        assert host["CapDrop"] == ["ALL"]
        assert host["PidsLimit"] > 0
        assert (host["Memory"] > 0) == (service != "worker")
        assert host["LogConfig"]["Config"] == {"max-size": "10m", "max-file": "3"}
        assert host["ReadonlyRootfs"]
        assert "no-new-privileges:true" in host["SecurityOpt"]
    shown = project.compose("config") + project.compose("logs", "--no-color")
    assert not any(password in shown for password in passwords)
    assert project.compose("exec", "-T", "worker", "id", "-u").strip() == "10001"
    for service in ("worker", "dashboard", "db"):
        status = project.compose("exec", "-T", service, "cat", "/proc/1/status")
        assert re.search(r"^CapEff:\s0+$", status, re.M)
        assert re.search(r"^CapPrm:\s0+$", status, re.M)
        assert re.search(r"^NoNewPrivs:\s1$", status, re.M)
    assert "size=2097152k" in project.compose(
        "exec", "-T", "worker", "grep", " /tmp ", "/proc/mounts"
    )


def test_the_gpu_override_shows_every_worker_all_gpus(project: Project) -> None:
    told = project.compose(
        "-f", "docker-compose.yml", "-f", "docker/compose.gpu.yml", "config", "--format", "json"
    )
    (device,) = json.loads(told)["services"]["worker"]["deploy"]["resources"]["reservations"][
        "devices"
    ]
    assert device["count"] in (-1, "all")
    assert device["driver"] == "nvidia"


def test_workers_told_to_stop_end_in_order_within_the_grace_period(project: Project) -> None:
    workers = project.containers("worker")
    wait_until(lambda: "slot 0" in project.compose("logs", "worker"))
    project.compose("stop", "worker")
    assert [inspected(container)["State"]["ExitCode"] for container in workers] == [0, 0]
    assert "no workers" in project.orchestrator("status"), "status needs no living worker"


def test_a_new_password_on_an_old_volume_is_said_with_the_way_out(project: Project) -> None:
    """Last: it changes the password."""
    secret = project.folder / "secrets" / "db_password"
    secret.write_text("another")
    quick = {"healthcheck": {"start_period": "1s", "interval": "1s", "retries": 2}}
    (project.folder / "quick.yml").write_text(
        yaml.safe_dump({"services": {"worker": quick, "dashboard": quick}})
    )
    files = ("-f", "docker-compose.yml", "-f", "quick.yml")
    up = project.tried(*files, "up", "-d", "--force-recreate", "--wait")
    assert up.returncode == 1
    assert "is unhealthy" in up.stderr
    wait_until(lambda: "rejects the password" in project.compose("logs", "worker"), 120)
    assert "ALTER ROLE orchestrator PASSWORD" in project.compose("logs", "worker")
    way_out = re.search(
        r"^ *(echo \"ALTER ROLE .*)$", (ROOT / "docs" / "reference.md").read_text(), re.M
    )
    assert way_out, "the reference shows how"
    project.shell(way_out[1])
    wait_until(lambda: project.health("worker") == {"healthy"}, 120)
