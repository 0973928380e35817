#!/usr/bin/env bash
# Packs what a GPU machine without a network lacks, for deploy/offline.sh there: wheels, CRIU, etcd, libfuse, generated code.
# Usage: deploy/bundle.sh FOLDER [PYTHON]     (here `make setup` has run; PYTHON of the other machine, 3.12)
# The other machine has PyTorch with CUDA, cuda-python, gcc and the Python headers; nothing of these is packed.
set -euo pipefail
cd "$(dirname "$0")/.."
OUT=$(mkdir -p "$1" && cd "$1" && pwd)
PYTHON=${2:-3.12}
VENV=$PWD/.venv
rm -rf "$OUT/wheels" "$OUT/source" "$OUT/debs"
mkdir -p "$OUT/wheels" "$OUT/source" "$OUT/debs"

platforms=()
for n in 5 12 17 24 26 27 28 31 34 35 39; do platforms+=(--platform "manylinux_2_${n}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)
download() { "$VENV/bin/pip" download -q --disable-pip-version-check --no-deps "$@"; }

# Exactly the versions that are installed here, but for what comes with PyTorch and what only tests and setup need.
names="accelerate aiohappyeyeballs aiohttp aiosignal annotated-types attrs click compressed-tensors cslab-etcd3 diffusers frozenlist
 googleapis-common-protos grpcio grpcio-health-checking grpcio-reflection grpcio-status h11 highspy httptools idna
 importlib_metadata llguidance loguru multidict opentelemetry-api opentelemetry-exporter-otlp-common
 opentelemetry-exporter-otlp-proto-common opentelemetry-exporter-otlp-proto-grpc opentelemetry-proto opentelemetry-sdk
 opentelemetry-semantic-conventions outcome prometheus_client propcache protobuf psutil pydantic pydantic_core
 pydantic-settings python-dotenv sniffio sortedcontainers transformers trio typing_extensions typing-inspection uvicorn
 uvloop yarl zipp"
wanted=()
for name in $names; do
  version=$("$VENV/bin/python" -c "from importlib import metadata; print(metadata.version('$name'))" 2>/dev/null) ||
    { echo "bundle: $name is not installed here, left out"; continue; }
  wanted+=("$name==$version")
done
download --only-binary=:all: --python-version "$PYTHON" --implementation cp "${platforms[@]}" -d "$OUT/wheels" "${wanted[@]}"
download --no-binary=:all: -d "$OUT/source" "pyfuse3==$("$VENV/bin/python" -c "from importlib import metadata; print(metadata.version('pyfuse3'))")"
(cd "$OUT/debs" && apt-get download -q libfuse3-3 libfuse3-dev >/dev/null 2>&1)
rm -f "$OUT/criu.tgz" "$OUT/etcd.gz"
XZ_OPT=-9e tar cJf "$OUT/tools.tar.xz" -C .tools criu etcd/usr/bin/etcd
"$VENV/bin/python" deploy/protos.py
tar czf "$OUT/api.tgz" libs/woodfrog/api
"$VENV/bin/python" -c 'from loadtest.report import commit; print(commit())' >"$OUT/commit"
echo "bundle: $(du -sm "$OUT" | cut -f1) MB in $OUT"
