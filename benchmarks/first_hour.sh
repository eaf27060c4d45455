#!/usr/bin/env bash
# What is to be seen first on a GPU that is lent for half an hour: one part a call, each under nine minutes and
# with its figures in a file. The parts in order: tests, step, loop, graph, frontend, memory.
#   benchmarks/first_hour.sh PART [FOLDER] [python]
set -uo pipefail
part="${1:?name a part: tests, step, loop, graph, frontend or memory}"
folder="$(mkdir -p "${2:-figures}" && cd "${2:-figures}" && pwd)"
PYTHON="${3:-python}"
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

case "$part" in
    tests) command=(-m pytest -m gpu -q -n 8 tests/gpu tests/data) ;;
    step) command=(benchmarks/kernels.py --batch 256 --compile off capture graph) ;;
    loop) command=(benchmarks/baseline.py --clips 16384 --batch 256 --workers 8) ;;
    graph) command=(benchmarks/epoch.py --compile off capture graph) ;;
    frontend) command=(benchmarks/frontend.py --batch 256) ;;
    memory) command=(benchmarks/step.py --batch 256 1024 4096 --compile graph --rounds 3) ;; # prints the peak
    *) echo "first_hour.sh: $part: must be tests, step, loop, graph, frontend or memory" >&2; exit 2 ;;
esac
timeout 530 "$PYTHON" "${command[@]}" 2>&1 | tee "$folder/$part.txt"
