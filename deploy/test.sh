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
$BIN/buf breaking --against protos/released.binpb # clients of what was released go on
step "types"
$BIN/mypy
step "layers"
$BIN/lint-imports --no-cache | tail -n 12
if [ $# -gt 0 ]; then
  step "tests"
  exec $BIN/pytest -rs --durations=10 "$@"
fi
# Those of clusters wait more than they compute: they run beside the others, and are shown after them.
beside=$(mktemp)
set -m # else bash has it ignore the interrupt by which it ends its clusters
$BIN/pytest -rs --durations=10 tests/cluster >"$beside" 2>&1 &
clusters=$!
set +m
trap '{ kill -INT "$clusters" && wait "$clusters"; } 2>/dev/null; rm -f "$beside"' EXIT
step "tests without a cluster"
$BIN/pytest -rs --durations=10 --ignore=tests/cluster && rc=0 || rc=$?
step "tests of clusters"
wait "$clusters" || rc=$?
cat "$beside"
exit "$rc"
