#!/usr/bin/env bash
# Everything the README may claim for a GPU, measured on this machine: parity first, then speed and memory.
#
#   benchmarks/gpu/run_all.sh OUT            all stages
#   benchmarks/gpu/run_all.sh OUT 480p       one stage: parity, memory, calibration, 480p, 720p or 1080p; each under ten minutes
#
# OUT gets one JSON file per measurement. PYTHON names the interpreter; it needs a CUDA build of torch, the other
# dependencies of this package, and, for the parity stage, pytest.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=${1:?usage: run_all.sh OUT [STAGE ...]}
shift
mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-python3}
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

bench() {
  "$python" -c 'from forcing_kv.cli import main; main()' bench --model self-forcing-1.3b --random-weights --device cuda \
    --resolution "$1" --repeats "$2" --json "$out/policies_gpu_$1.json" --overwrite
}

stage() {
  case $1 in
    parity)
      "$python" -m pytest tests/test_goldens.py -k cuda -o addopts= -v | tee "$out/parity.log"
      ;;
    memory)
      "$python" benchmarks/memory.py --device cuda --json "$out/memory_gpu.json"
      ;;
    calibration)
      "$python" benchmarks/calibration.py --device cuda --repeats 10 --json "$out/calibration_gpu.json"
      ;;
    480p) bench "$1" 10 ;;
    720p) bench "$1" 5 ;;
    1080p) bench "$1" 2 ;;
    *)
      echo "unknown stage $1; choose of: parity memory calibration 480p 720p 1080p" >&2
      exit 2
      ;;
  esac
}

for name in "${@:-parity memory calibration 480p 720p 1080p}"; do
  for one in $name; do
    echo "=== $one"
    stage "$one"
  done
done
