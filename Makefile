.PHONY: setup demo test protos fmt lint types layers down
PY := .venv/bin/python
ENGINE ?= transformers

setup:
	@bash deploy/setup.sh

demo: setup protos
	@$(PY) -m woodfrog.cli demo --engine $(ENGINE)

test: setup protos
	@bash deploy/clients.sh
	@bash deploy/test.sh

protos:
	@$(PY) deploy/protos.py

fmt:
	@.venv/bin/ruff format . && .venv/bin/ruff check --fix .

lint:
	@.venv/bin/ruff format --check . && .venv/bin/ruff check . && .venv/bin/buf lint && .venv/bin/buf breaking --against protos/released.binpb

types:
	@.venv/bin/mypy

layers:
	@.venv/bin/lint-imports

down:
	@test ! -x $(PY) || $(PY) -m woodfrog.cli down
