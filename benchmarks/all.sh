#!/usr/bin/env bash
# Every benchmark of speed, in one call, on the machine at hand, the weightiest first. With LIMIT=SECONDS
# what is left when they are over is cut short or left out.
#   LIMIT=460 benchmarks/all.sh [python] > figures.txt
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
errors="$(mktemp)"
trap 'rm -f "$errors"' EXIT
PYTHON="${1:-python}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

for script in step epoch frontend baseline startup reader build frontend_dali scaling checkpoints compiled kernels busy; do
    left=$((${LIMIT:-100000} - SECONDS))
    if [ "$left" -lt 5 ]; then
        printf '\n## benchmarks/%s.py: left out, the time is over\n' "$script"
        continue
    fi
    printf '\n## benchmarks/%s.py\n\n' "$script"
    begin=$SECONDS
    timeout "$((left < 400 ? left : 400))" "$PYTHON" "benchmarks/$script.py" 2>"$errors" || tail -3 "$errors"
    printf '\n(%s s)\n' "$((SECONDS - begin))"
done
