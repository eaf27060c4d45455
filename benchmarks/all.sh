#!/usr/bin/env bash
# Every benchmark of speed, in one call, on the machine at hand. On a GPU it takes minutes.
#   benchmarks/all.sh [python] > figures.txt
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
errors="$(mktemp)"
trap 'rm -f "$errors"' EXIT
PYTHON="${1:-python}"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

for script in startup frontend frontend_dali compiled step baseline epoch reader build scaling checkpoints; do
    printf '\n## benchmarks/%s.py\n\n' "$script"
    begin=$SECONDS
    timeout 400 "$PYTHON" "benchmarks/$script.py" 2>"$errors" || tail -3 "$errors"
    printf '\n(%s s)\n' "$((SECONDS - begin))"
done
