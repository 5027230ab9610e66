"""Artifacts as optuna-dashboard serves them from `paths.artifacts`."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any, cast
from wsgiref.util import setup_testing_defaults

import optuna
from optuna.artifacts import upload_artifact
from optuna.storages import InMemoryStorage

from orchestrator.dashboard.server import pages
from orchestrator.runner.files.artifacts import ArtifactPlace
from orchestrator.store import Store


class NoStudies:
    def studies(self) -> list[Any]:
        return []


def ask(app: Any, method: str, path: str) -> tuple[int, dict[str, str], bytes]:
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "PATH_INFO": path}
    setup_testing_defaults(environ)
    answered: list[Any] = []
    body = b"".join(
        app(environ, lambda status, headers, exc_info=None: answered.append((status, headers)))
    )
    status, headers = answered[0]
    return int(status.split()[0]), dict(headers), body


def test_an_artifact_is_listed_saved_and_deleted_and_one_without_its_file_is_not_found(
    tmp_path: Path,
) -> None:
    storage, place = InMemoryStorage(), ArtifactPlace(str(tmp_path / "artifacts"))
    study = optuna.create_study(storage=storage)
    trial = study.ask()
    (tmp_path / "page.html").write_text("<script>steal()</script>")
    kept = upload_artifact(
        artifact_store=place, file_path=str(tmp_path / "page.html"), study_or_trial=trial
    )
    store = cast(Store, type("Opened", (), {"reads": NoStudies()}))
    app = pages(store, storage, place)

    where = f"/artifacts/{study._study_id}/{trial._trial_id}/{kept}"
    status, headers, body = ask(app, "GET", where)
    assert (status, body, headers["Content-Type"]) == (
        200,
        b"<script>steal()</script>",
        "text/html",
    )
    assert headers["Content-Disposition"] == "attachment"
    assert headers["Content-Security-Policy"].startswith("sandbox;")
    assert ask(app, "DELETE", f"/api{where}")[0] == 204
    assert list((tmp_path / "artifacts").iterdir()) == []
    assert ask(app, "GET", where)[0] == 404

    place.write(kept, io.BytesIO(b"x"))
    lost = upload_artifact(
        artifact_store=place, file_path=str(tmp_path / "page.html"), study_or_trial=study
    )
    place.remove(lost)
    status, _, body = ask(app, "GET", f"/artifacts/{study._study_id}/{lost}")
    assert (status, json.loads(body)) == (
        404,
        {"reason": "the file is not in the paths.artifacts of this dashboard"},
    )
