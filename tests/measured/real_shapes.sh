#!/usr/bin/env bash
# Peak memory of the host and seconds a step on models of published shapes with random weights (real_shapes.py):
#   OPT-6.7B in 8 bits and in 4 (NF4), r 16 on q_proj and v_proj, gradient checkpointing, 1 text of 64 tokens;
#   T0_3B in bfloat16, r 8, 8 texts of 64 tokens.
# SHAPES="opt-6.7b:int8 opt-6.7b:nf4 t0-3b" says which; WORK: a folder with 14 GB to spare, emptied at the end; STEPS, THREADS.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${LORABOOTH_PYTHON:-$HOME/.cache/lorabooth/venv/bin/python}
work=$(mktemp -d -p "${WORK:-/tmp}"); trap 'rm -rf "$work"' EXIT
for shape in ${SHAPES:-opt-6.7b:int8 opt-6.7b:nf4 t0-3b}; do
  case $shape in
    opt-6.7b:*) data='{"words": 64}' bits=${shape#*:}
      limit=$([ "$bits" = nf4 ] && echo 5.5 || echo 9.5)
      flags=(--task causal-lm --quantize "$bits" --lora-r 16 --lora-targets q_proj,v_proj --gradient-checkpointing --train-batch-size 1) ;;
    t0-3b) data='{"words": 64, "answer": 4}' limit=8
      flags=(--task seq2seq-lm --label-column label --mixed-precision bf16 --lora-r 8 --train-batch-size 8) ;;
  esac
  "$python" tests/measured/real_shapes.py "$work/job" "${shape%:*}" "$data"
  ${LORABOOTH:-target/release/lorabooth} train llm --quiet --device cpu --threads "${THREADS:-2}" --model "$work/job/model" \
    --train-file "$work/job/train.jsonl" --max-train-steps "${STEPS:-2}" --checkpointing-steps 1000 --output-dir "$work/out" "${flags[@]}"
  "$python" - "$shape" "$limit" "$work/out" <<'PY'
import json, sys
shape, limit, out = sys.argv[1], float(sys.argv[2]), sys.argv[3]
run = json.load(open(f"{out}/run.json"))
steps = [json.loads(line) for line in open(f"{out}/metrics.jsonl")]
peak, private = (run["peak_memory_bytes"][name] / 1e9 for name in ("host", "host_private"))
seconds = ", ".join(f"{step['step_s']:.1f}" for step in steps)
losses = ", ".join(f"{step['loss']:.3f}" for step in steps)
print(f"{shape}: peak {peak:.2f} GB (at most {limit}), of it private at the end {private:.2f} GB; "
      f"{run['seconds']['before_training']:.1f} s before training, {seconds} s a step; loss {losses}")
sys.exit(peak > limit)
PY
  rm -rf "$work"/*
done
