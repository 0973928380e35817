#!/usr/bin/env bash
# Other people's clients of OpenAI's API, each with what it needs in a folder of its own below .tools/clients, for
# tests/conformance. With the word `proxy` also LiteLLM's proxy, which only loadtest.gateway compares with.
# Usage: deploy/clients.sh [proxy]   (after deploy/setup.sh)
set -euo pipefail
cd "$(dirname "$0")/.."
CLIENTS=$PWD/.tools/clients
LOG=$PWD/.tools/clients.log
OLDEST=1.66.0  # the oldest openai of Python that is supported: the first that knows /v1/responses
NODE_SDK=5.23.2  # newer ones want a newer node than Debian's
mkdir -p "$CLIENTS"

quiet() {
  if ! "$@" >>"$LOG" 2>&1; then
    tail -n 25 "$LOG" >&2
    printf '%s\n' "clients failed: '$*' did not succeed; the whole output is in $LOG" >&2
    exit 1
  fi
}
# Makes folder NAME by the command behind it, once; what was left of a try that broke off goes first.
once() {
  local name=$1; shift
  [ -e "$CLIENTS/$name/.done" ] && return
  printf '%s\n' "clients: $name"
  rm -rf "${CLIENTS:?}/$name"
  quiet "$@"
  touch "$CLIENTS/$name/.done"
}
pip_into() { .venv/bin/pip install --disable-pip-version-check --target "$CLIENTS/$1" "${@:2}"; }
npm_into() { mkdir -p "$CLIENTS/$1" && npm install --no-audit --no-fund --prefix "$CLIENTS/$1" "${@:2}"; }
venv_into() { python3 -m venv "$CLIENTS/$1" && "$CLIENTS/$1/bin/pip" install --disable-pip-version-check "${@:2}"; }

if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
  printf '%s\n' "clients: apt packages nodejs npm"
  export DEBIAN_FRONTEND=noninteractive
  quiet apt-get update
  quiet apt-get install -y --no-install-recommends nodejs npm
fi
once "openai-$OLDEST" pip_into "openai-$OLDEST" "openai==$OLDEST"
once litellm pip_into litellm "litellm>=1.80"
once "node-$NODE_SDK" npm_into "node-$NODE_SDK" "openai@$NODE_SDK"
if [ "${1:-}" = proxy ]; then
  once litellm-proxy venv_into litellm-proxy "litellm[proxy]>=1.80"
fi
