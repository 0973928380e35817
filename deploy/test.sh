#!/usr/bin/env bash
# Lint, types, layers and all tests. What a machine lacks is skipped with its reason; REQUIRE=criu,… makes that a failure.
# Usage: deploy/test.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
BIN=.venv/bin
step() { printf '\n== %s\n' "$1"; }

step "lint"
$BIN/ruff format --check -q .
$BIN/ruff check -q .
$BIN/buf lint
step "types"
$BIN/mypy
step "layers"
$BIN/lint-imports --no-cache | tail -n 12
step "tests"
$BIN/pytest -rs --durations=10 "$@"
