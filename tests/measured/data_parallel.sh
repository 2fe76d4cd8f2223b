#!/usr/bin/env bash
# Seconds a step of two processes with a thread each beside one process with one thread, each with the same batch, on random weights of
# published shapes: GPT-2 (124M), 4 texts of 128 tokens; and what the processes hold in memory that they share.
#   tests/measured/data_parallel.sh [PROGRAM]; ROUNDS (3), STEPS (8), WORK: a folder with 2 GB to spare
# The best step of each run counts, and the rounds take turns, so that other programs on the machine count less.
set -euo pipefail
cd "$(dirname "$0")/../.."
program=$(realpath "${1:-target/release/lorabooth}")
python=${LORABOOTH_PYTHON:-$HOME/.cache/lorabooth/venv/bin/python}
work=$(mktemp -d -p "${WORK:-/tmp}"); trap 'rm -rf "$work"' EXIT
"$python" tests/measured/real_shapes.py "$work/job" gpt2 '{"words": 128, "records": 64}'
train() { # NAME FLAGS…
  local out=$work/$1; shift
  rm -rf "$out"
  "$program" train llm --quiet --device cpu --threads 1 --mixed-precision no --task causal-lm --train-batch-size 4 --lora-r 8 --model "$work/job/model" \
    --train-file "$work/job/train.jsonl" --max-train-steps "${STEPS:-8}" --output-dir "$out" "$@"
}
for round in $(seq "${ROUNDS:-3}"); do
  train "one-$round"
  train "two-$round" --processes 2
done
"$python" - "$work" <<'PY'
import json, pathlib, statistics, sys
work = pathlib.Path(sys.argv[1])
def steps(name):
    return [[json.loads(line)["step_s"] for line in open(path / "metrics.jsonl")][1:] for path in sorted(work.glob(name))]
one, two = steps("one-*"), steps("two-*")
best = [min(min(run) for run in runs) for runs in (one, two)]
medians = [min(statistics.median(run) for run in runs) for runs in (one, two)]
print(f"one process: best step {best[0]:.3f} s, best median {medians[0]:.3f} s")
print(f"two processes: best step {best[1]:.3f} s ({best[1] / best[0]:.2f} times), best median {medians[1]:.3f} s ({medians[1] / medians[0]:.2f} times)")
PY
