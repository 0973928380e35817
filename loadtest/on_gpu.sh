#!/usr/bin/env bash
# Runs benches on a GPU machine without a network, each within its own time, and collects logs and results in OUT. One that
# runs out of time is interrupted, so that it prints the services' logs.
# Usage: loadtest/on_gpu.sh BUNDLE OUT PART...   (as root, in the repository; BUNDLE by deploy/bundle.sh, with a folder `tok`
#        that holds a tokenizer.json, and if wanted `rivals` with wheels of other loaders)
# Parts: correctness, room, two-gpus, layers, or a shape of loadtest.shapes, "llama-8b:CASES:RUNS:NAME" (NAME of its results, where
#        they take several runs); "llama-8b+compile" compiles it.
# DROP=1 removes the weights made once they are added, where two copies of them do not fit.
# PYTHON=… names an interpreter that has PyTorch with CUDA. Weights are made in WORK, in memory for the largest.
set -u
BUNDLE=$1 OUT=$2 WORK=${WORK:-/dev/shm/woodfrog-shapes}
shift 2
. "$(dirname "$0")/../deploy/offline.sh" "$BUNDLE" "${PYTHON:-python3}"
for wheel in "$BUNDLE"/rivals/*.whl; do
  [ -e "$wheel" ] && "$PYTHON" -m pip install -q --no-index --no-deps "$wheel" 2>/dev/null
done
export PYTHONUNBUFFERED=1
mkdir -p "$OUT" "$WORK"
touch "$WORK/.began"

within() {  # within SECONDS NAME MODULE ARGUMENT...
  local limit=$1 name=$2
  shift 2
  timeout -s INT -k 30 "$limit" "$PYTHON" -m "$@" --work "$WORK" >"$OUT/$name.log" 2>&1
  echo "$name: status $?, at $SECONDS s"
  find loadtest/results -name '*gpu*.json' -newer "$WORK/.began" -exec cp {} "$OUT/" \;
}

for part in "$@"; do
  IFS=: read -r shape cases runs name <<<"$part"
  case $shape in
    correctness) within 400 correctness loadtest.gpu_correctness --tokenizer "$BUNDLE/tok" --kills 0.03,0.12,0.25 ;;
    room) within 120 room loadtest.gpu_correctness --tokenizer "$BUNDLE/tok" --room ;;
    two-gpus) within 150 two-gpus loadtest.gpu_correctness --tokenizer "$BUNDLE/tok" --gpus 2 ;;
    layers) timeout -k 10 90 "$PYTHON" -m loadtest.quantized_layers >"$OUT/layers.log" 2>&1 ;;
    *)
      memory=12 compile=()
      [[ $shape == *+compile ]] && compile=(--compile)
      [[ $shape == sdxl ]] && memory=16
      [[ $shape == llama-70b* ]] && memory=10
      within 560 "${shape/+/-}" loadtest.gpu_ladder --shape "${shape%+compile}" --tokenizer "$BUNDLE/tok" --gpu-memory "$memory" \
        --cases "${cases:-hot,parked,frozen}" --runs "${runs:-7}" "${compile[@]}" ${name:+--name "$name"} ${DROP:+--drop} ;;
  esac
done
