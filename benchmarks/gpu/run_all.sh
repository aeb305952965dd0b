#!/usr/bin/env bash
# Everything the README may claim for a GPU, measured on one H200: parity first, then speed and memory.
#
#   benchmarks/gpu/run_all.sh OUT                all stages
#   benchmarks/gpu/run_all.sh OUT parity ladder  some of them; each takes less than ten minutes
#   DRY_RUN=1 benchmarks/gpu/run_all.sh OUT      on a CPU, at toy size, in minutes: shows that the script works
#
# Every stage writes one JSON file in OUT, and `summary` a table of goals, predictions and measurements. What each
# stage should come to is written down before it is measured (OUT/predictions.json, and in the stage's own file).
#
# PYTHON names the interpreter, else .venv is taken, which `make install` makes: a CUDA build of torch, the dependencies of this package and pytest. What it lacks, and
# fa3-fwd, may lie as wheels in a folder that WHEELS names; they are put into a folder of their own, from there alone.
# EXECUTION and ATTENTION say how the stages after the ladder run passes; without them OUT/ladder.json does. COMMIT is
# what is measured, where this is a copy without .git.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

resolutions="480p-bf16 480p-fp8 720p-bf16 720p-fp8 1080p-bf16 1080p-fp8"
all_stages="parity attention ladder vae $resolutions 14b breakdown memory calibration summary"

usage() {
  echo "usage: run_all.sh OUT [STAGE ...]; stages: $all_stages" >&2
  exit 2
}

[ $# -ge 1 ] || usage
out=$1
shift
[ $# -ge 1 ] || read -ra stages <<<"$all_stages"
[ $# -eq 0 ] || stages=("$@")
for name in "${stages[@]}"; do
  if [[ " $all_stages " != *" $name "* ]]; then
    echo "run_all.sh: unknown stage $name" >&2
    usage
  fi
done

mkdir -p "$out"
out=$(cd "$out" && pwd)
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
dry_run=()
[ -z "${DRY_RUN:-}" ] || dry_run=(--dry-run)
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

install_wheels() {
  local site
  site=$(mktemp -d)
  "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "$WHEELS"/*.whl
  export PYTHONPATH="$PYTHONPATH:$site"
}

stage() {
  case $1 in
    parity) "$python" benchmarks/gpu/parity.py --out "$out" "${dry_run[@]}" ;;
    ladder | vae | *p-bf16 | *p-fp8 | 14b) "$python" benchmarks/gpu/measure.py "$1" --out "$out" "${dry_run[@]}" ;;
    breakdown) "$python" benchmarks/gpu/breakdown.py --out "$out" "${dry_run[@]}" ;;
    summary) "$python" benchmarks/gpu/summary.py "$out" ;;
    *) "other_$1" ;;
  esac
}

other_attention() {
  if [ -n "${DRY_RUN:-}" ]; then
    "$python" benchmarks/attention.py --device cpu --quick --json "$out/attention.json"
  else
    "$python" benchmarks/attention.py --device cuda --tiles --json "$out/attention.json"
  fi
}

other_memory() {
  if [ -n "${DRY_RUN:-}" ]; then
    "$python" benchmarks/memory.py --layers 1 --resolutions 96x64 --chunks 2 --json "$out/memory.json"
  else
    "$python" benchmarks/memory.py --device cuda --json "$out/memory.json"
  fi
}

other_calibration() {
  if [ -n "${DRY_RUN:-}" ]; then
    "$python" benchmarks/calibration.py --layers 1 --resolution 96x64 --repeats 1 --json "$out/calibration.json"
  else
    "$python" benchmarks/calibration.py --device cuda --repeats 10 --json "$out/calibration.json"
  fi
}

[ -z "${WHEELS:-}" ] || install_wheels
[ -e "$out/predictions.json" ] || "$python" benchmarks/gpu/predictions.py "$out"

failed=()
for name in "${stages[@]}"; do
  echo "=== $name"
  started=$SECONDS
  if ! stage "$name"; then
    failed+=("$name")
    # Nothing is worth timing that does not compute the same.
    [ "$name" != parity ] || break
  fi
  echo "=== $name: $((SECONDS - started)) s"
done
if [ ${#failed[@]} -gt 0 ]; then
  echo "run_all.sh: failed: ${failed[*]}" >&2
  exit 1
fi
