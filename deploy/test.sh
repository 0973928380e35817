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
# Those of clusters and services wait more than they compute: they run beside the others, and are shown after them.
shown=$(mktemp -d)
lanes=()
beside() {
  set -m # else bash has it ignore the interrupt by which it ends its clusters
  $BIN/pytest -rs --durations=10 "${@:2}" >"$shown/$1" 2>&1 &
  lanes+=("$!")
  set +m
}
trap '{ kill -INT "${lanes[@]}" && wait "${lanes[@]}"; } 2>/dev/null; rm -rf "$shown"' EXIT
beside clusters tests/cluster
beside services tests/conformance tests/service
step "tests without a service"
$BIN/pytest -rs --durations=10 --ignore=tests/cluster --ignore=tests/conformance --ignore=tests/service && rc=0 || rc=$?
for lane in services clusters; do
  step "tests of $lane"
  pid=${lanes[-1]}
  unset "lanes[-1]"
  wait "$pid" || rc=$?
  cat "$shown/$lane"
done
exit "$rc"
