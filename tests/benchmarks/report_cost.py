"""What a report costs: time, peak memory and size for studies of 1,000 and 10,000 trials in 30
cells, and for a grid of 100,000 cells.

Each report is made by the command, in a process of its own, from a database filled by SQL. A line
of JSON for each:

    python tests/benchmarks/report_cost.py
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from orchestrator.store import Store
from tests.support.large import complete, vacuum
from tests.support.own_server import OwnServer
from tests.support.studies import spec
from tests.support.told import fill, told

MEASURED = """
import json, resource, sys
from orchestrator.cli import main
code = main(sys.argv[1:])
used = resource.getrusage(resource.RUSAGE_SELF)
cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss / 1024
print(json.dumps({"code": code, "cpu_s": round(cpu, 1), "peak_mib": round(peak)}))
"""


def measure(url: str, name: str, directory: Path) -> dict[str, float]:
    """Seconds, those of the processor, peak memory (MiB) and size (MB) of one report."""
    environment = {**os.environ, "ORCHESTRATOR_STORAGE_URL": url, "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, "report", f"study.name={name}", "out=report.html"],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    seconds = time.monotonic() - began
    told_at_end = json.loads(done.stdout.splitlines()[-1])
    assert told_at_end["code"] == 0, done.stderr
    size = (directory / "report.html").stat().st_size
    return {
        "seconds": round(seconds, 1),
        "cpu_s": told_at_end["cpu_s"],
        "peak_mib": told_at_end["peak_mib"],
        "megabytes": round(size / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, nargs="*", default=[1_000, 10_000])
    parser.add_argument("--cells", type=int, nargs="*", default=[100_000])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as made, OwnServer() as server:
        directory = Path(made)
        store = Store(server.url)
        for trials in args.trials:
            name = f"trials{trials}"
            fill(store, told(name, per_cell=trials // 30))
            vacuum(server.url)
            line(trials=trials, cells=30, **measure(server.url, name, directory))
        for cells in args.cells:
            name = f"cells{cells}"
            study_id = store.studies.launch(spec(name, cells=cells)).study_id
            complete(server.url, study_id, 0, 999)
            vacuum(server.url)
            line(trials=1_000, cells=cells, **measure(server.url, name, directory))
        store.rest()


def line(**figures: object) -> None:
    print(json.dumps({**figures, "load": round(os.getloadavg()[0], 1)}), flush=True)


if __name__ == "__main__":
    main()
