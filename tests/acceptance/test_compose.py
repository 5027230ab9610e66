"""`docker compose up` on a real engine: workers, dashboard, launches, the user's own code, and a database that goes away."""

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
    for command in (["docker", "version", "--format", "{{.Server.Version}}"], ["docker", "compose", "version"]):
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
        command = ["docker", "compose", *arguments]
        done = subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, timeout=timeout, check=False
        )
        assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

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

    def containers(self, service: str) -> list[str]:
        return self.compose("ps", "-q", service).split()


@pytest.fixture(scope="module")
def image() -> str:
    wheels = subprocess.run(
        ["pip", "config", "get", "global.find-links"], capture_output=True, text=True, check=False
    ).stdout.strip()
    context = ["--build-context", f"wheels={wheels}"] if wheels and Path(wheels).is_dir() else []
    command = ["docker", "build", "-q", "-f", "docker/Dockerfile", "-t", IMAGE, *context, "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1000, check=False)
    assert done.returncode == 0, done.stderr
    return IMAGE


@pytest.fixture(scope="module")
def project(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("compose")
    shutil.copy(ROOT / "docker-compose.yml", folder)
    shutil.copytree(ROOT / "docker", folder / "docker")
    write_user_code(folder / "code")
    make_secret = re.search(r"^#\s+(install .*secrets/db_password)$", (ROOT / "docker-compose.yml").read_text(), re.M)
    assert make_secret, "docker-compose.yml shows how to make the password"
    subprocess.run(["bash", "-c", make_secret[1]], cwd=folder, check=True)

    project = Project(folder)
    try:
        project.compose("up", "-d", "--wait", "--scale", "worker=2")
        yield project
    finally:
        project.compose("--profile", "launch", "down", "--volumes", "--remove-orphans")


def write_user_code(folder: Path) -> None:
    (folder / "conf" / "experiment").mkdir(parents=True)
    folder.chmod(0o755)
    (folder / "mine.py").write_text("def parabola(cfg, trial):\n    return (cfg.x - cfg.target) ** 2\n")
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
    return re.findall(r"\b(\d+/\d+) trials", said)[-1]


def test_a_launch_takes_overrides_and_is_done_by_the_workers(project: Project) -> None:
    assert len(project.containers("worker")) == 2
    search = "optim.lr=tag(log, interval(1e-3, 1e-1))"
    said = project.launch("experiment=digits", "sampler=gp", "data.batch_size=64,128", search, "budget.trials=4", *SMALL[1:])
    assert trials_done(said) == "4/4"
    assert "finished" in said


def test_workers_survive_a_restart_of_the_database_and_the_study_goes_on(project: Project) -> None:
    study = ("experiment=digits", "study.name=restarted", *SMALL)
    assert trials_done(project.launch(*study)) == "6/6"
    before = project.containers("worker")
    project.compose("restart", "db")
    assert trials_done(project.launch(*study, "budget.trials=8")) == "8/8"
    assert project.containers("worker") == before
    for container in before:
        count = subprocess.run(
            ["docker", "inspect", "-f", "{{.RestartCount}}", container], capture_output=True, text=True, check=True
        )
        assert count.stdout.strip() == "0"


def test_mounted_code_and_config_of_the_user_run(project: Project) -> None:
    said = project.launch("--config-dir", "conf", "experiment=mine")
    assert trials_done(said) == "4/4"


def test_the_override_grammar_reaches_the_program_as_it_is_typed_in_a_shell(project: Project) -> None:
    write_grammar_experiment(project.folder / "code" / "conf")
    words = " ".join(line.bash for line in LINES.values())
    here = config.compose(
        "launch", ["experiment=grammar", *shlex.split(words)], config_dir=str(project.folder / "code" / "conf")
    )
    typed = f"docker compose run --rm -T launch --config-dir conf experiment=grammar {words} --cfg job"
    said = yaml.safe_load(project.shell(typed))
    for section in ("grid", "search", "params"):
        assert said[section] == OmegaConf.to_container(here.config[section])


def test_code_baked_into_an_image_of_the_user_s_own_imports(project: Project) -> None:
    tag = f"{IMAGE}-baked"
    recipe = f"FROM {IMAGE}\nCOPY mine.py /opt/code/\n"
    (project.folder / "Dockerfile.mine").write_text(recipe)
    subprocess.run(
        ["docker", "build", "-q", "-f", str(project.folder / "Dockerfile.mine"), "-t", tag, str(project.folder / "code")],
        check=True,
        capture_output=True,
        timeout=120,
    )
    probe = "import mine, orchestrator; assert '/opt/orchestrator/' in orchestrator.__file__; print(mine.__file__)"
    command = ["docker", "run", "--rm", "--entrypoint", "python", tag, "-c", probe]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "/opt/code/mine.py"


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


def test_containers_run_without_privileges_and_the_password_is_in_a_file_only(project: Project) -> None:
    passwords = [(project.folder / "secrets" / f"{name}_password").read_text().strip() for name in ("db", "dashboard")]
    assert [len(password) for password in passwords] == [48, 48]
    for service in ("db", "worker", "dashboard"):
        (container, *_) = project.containers(service)
        told = subprocess.run(["docker", "inspect", container], capture_output=True, text=True, check=True).stdout
        assert not any(password in told for password in passwords)
        host = json.loads(told)[0]["HostConfig"]
        assert host["CapDrop"] == ["ALL"]
        assert host["ReadonlyRootfs"]
        assert "no-new-privileges:true" in host["SecurityOpt"]
    shown = project.compose("config") + project.compose("logs", "--no-color")
    assert not any(password in shown for password in passwords)
    assert project.compose("exec", "-T", "worker", "id", "-u").strip() != "0"


def test_the_gpu_override_shows_every_worker_all_gpus(project: Project) -> None:
    told = project.compose("-f", "docker-compose.yml", "-f", "docker/compose.gpu.yml", "config", "--format", "json")
    (device,) = json.loads(told)["services"]["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert device["count"] in (-1, "all")
    assert device["driver"] == "nvidia"


def test_workers_told_to_stop_end_in_order_within_the_grace_period(project: Project) -> None:
    workers = project.containers("worker")
    wait_until(lambda: "holds" in project.compose("logs", "worker"))
    project.compose("stop", "worker")
    for container in workers:
        state = subprocess.run(
            ["docker", "inspect", "-f", "{{json .State}}", container], capture_output=True, check=True
        ).stdout
        assert json.loads(state)["ExitCode"] == 0
