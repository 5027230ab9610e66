# The tools of the virtual environment here, if there is one, else those on the path.
BIN ?= $(if $(wildcard .venv/bin/python),.venv/bin/,)

.PHONY: help check check-static format settings fast test random nightly chaos docs picture hydra-next secrets
.DELETE_ON_ERROR:

help:         ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

check: check-static test  ## what CI runs

check-static: ## format, lint, import contracts, types
	$(BIN)ruff format --check .
	$(BIN)ruff check .
	$(BIN)lint-imports
	$(BIN)mypy

format:       ## format the code and mend what ruff can mend
	$(BIN)ruff format .
	$(BIN)ruff check --fix .

settings:     ## write conf/*.yaml and the reference's tables from orchestrator/settings
	$(BIN)python docs/write_settings.py

fast:         ## the unit tests alone
	$(BIN)python -m pytest -n 4 tests/unit

test:         ## all tests but the nightly ones
	$(BIN)python -m pytest -n 4 --dist loadgroup

random:       ## the property tests with random examples instead of the same ones
	RANDOM_EXAMPLES=1 $(BIN)python -m pytest -n 4 --dist loadgroup $$(grep -rl 'hypothesis import' tests/unit tests/integration)

nightly:      ## the tests that a day may wait for: the benchmarks' own, statistics of further samplers
	$(BIN)python -m pytest -m nightly -n 4 --dist loadgroup

chaos:        ## every fault in full: a quarter of an hour
	$(BIN)python -m pytest -m chaos tests/chaos -n 2 --chaos=long

docs:         ## the documentation site, in build/site; fails at a broken link (pip install -e '.[docs]')
	$(BIN)python -m mkdocs build

picture:      ## README's pictures, from a run of the digits example; needs Chromium, takes minutes
	OMP_NUM_THREADS=1 $(BIN)python docs/pictures/make.py

hydra-next:   ## the unit tests and the example with Hydra's next release candidate, in build/hydra-next
	python3 -m venv build/hydra-next
	build/hydra-next/bin/pip install -q -c constraints.txt -e '.[dev]'
	build/hydra-next/bin/pip install -q --upgrade --pre 'hydra-core<1.5'
	build/hydra-next/bin/python -m pytest -n 4 tests/unit
	ORCHESTRATOR_DATA_DIR=build/hydra-next/data build/hydra-next/bin/orchestrator launch experiment=digits

# The passwords of docker-compose.yml's database and dashboard; existing ones are kept. The containers' user, who is neither you
# nor root, must be able to read the files; the folder keeps others of this host out.
secrets: secrets/db_password secrets/dashboard_password ## the passwords of docker-compose.yml

secrets/%_password:
	install -d -m 700 secrets
	head -c 24 /dev/urandom | od -An -tx1 | tr -d ' \n' > $@
	chmod 644 $@
