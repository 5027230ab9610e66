#!/bin/bash
# Guess: one schema revision of Optuna's storage, one meaning. Behaviour: Optuna 4 stores naive local times and Optuna 5 naive UTC
# under the same revision (v3.2.0.a), so one storage shows a trial of the other version in the future or the past. Who meets it: all
# who open with Optuna 5 a storage that Optuna 4 made, or use both versions on one, where hosts are not set to UTC.
# Seen with optuna 4.9.0 and 5.0.0 on SQLite, TZ=Asia/Tokyo:
#   revision v3.2.0.a and v3.2.0.a; started after it was written: by 4.9.0 +9 h, by 5.0.0 +0 h
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
for version in 4.9.0 5.0.0; do
    python3 -m venv "venv-$version"
    "venv-$version/bin/pip" install --quiet --disable-pip-version-check "optuna==$version"
done
export TZ=Asia/Tokyo
cat > write.py <<'PY'
import sys
import optuna
optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(study_name=sys.argv[1], storage="sqlite:///times.db")
study.tell(study.ask(), 1.0)
PY
cat > read.py <<'PY'
from datetime import datetime, timezone
import sqlite3
rows = sqlite3.connect("times.db").execute(
    "SELECT s.study_name, t.datetime_start FROM trials t JOIN studies s USING (study_id)"
)
now = datetime.now(timezone.utc).replace(tzinfo=None)
off = {name: round((datetime.fromisoformat(start) - now).total_seconds() / 3600) for name, start in rows}
print("hours from UTC, by version:", off)
assert off == {"4.9.0": 9, "5.0.0": 0}, off
PY
for version in 4.9.0 5.0.0; do
    "venv-$version/bin/python" write.py "$version"
    "venv-$version/bin/python" -c 'import sqlite3; print(sqlite3.connect("times.db").execute("SELECT version_num FROM alembic_version").fetchall())' \
        | tee "revision-$version"
done
cmp revision-4.9.0 revision-5.0.0
venv-5.0.0/bin/python read.py
