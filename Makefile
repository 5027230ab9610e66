# The tools of the virtual environment here, if there is one, else those on the path.
BIN ?= $(if $(wildcard .venv/bin/python),.venv/bin/,)

.PHONY: check check-static test chaos secrets
.DELETE_ON_ERROR:

check: check-static test

check-static:
	$(BIN)ruff format --check .
	$(BIN)ruff check .
	$(BIN)lint-imports
	$(BIN)mypy

test:
	$(BIN)python -m pytest -n 2 --dist loadgroup

# Every fault in full: a quarter of an hour.
chaos:
	$(BIN)python -m pytest -m chaos tests/chaos -n 2 --chaos=long

# The passwords of docker-compose.yml's database and dashboard; existing ones are kept. The containers' user, who is neither you
# nor root, must be able to read the files; the folder keeps others of this host out.
secrets: secrets/db_password secrets/dashboard_password

secrets/%_password:
	install -d -m 700 secrets
	head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' > $@
	chmod 644 $@
