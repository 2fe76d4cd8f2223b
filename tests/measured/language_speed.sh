#!/usr/bin/env bash
# Seconds a step, time to the first step and peak memory of lorabooth and of PEFT's loop, one after the other on the same weights: a
# GPT-2 of 124 million random weights, LoRA r 8 on c_attn, float32, 4 texts of 128 tokens. STEPS, THREADS; JOB: a folder of
# real_shapes.py to measure with instead; CLASS: its class in transformers.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${LORABOOTH_PYTHON:-$HOME/.cache/lorabooth/venv/bin/python}
steps=${STEPS:-6} threads=${THREADS:-2}
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
job=${JOB:-$work/job}
[ -n "${JOB:-}" ] || "$python" tests/measured/real_shapes.py "$job" gpt2 '{"words": 128, "records": 24}'
train() {
  ${LORABOOTH:-target/release/lorabooth} train llm --quiet --device cpu --threads "$threads" --mixed-precision no --no-shuffle \
    --task causal-lm --model "$job/model" --train-file "$job/train.jsonl" --learning-rate 1e-3 --output-dir "$@"
}
train "$work/start" --max-train-steps 0
cd tests/reference
OMP_NUM_THREADS=$threads "$python" language_loop.py "$work/theirs" \
  "{\"job\": \"$job\", \"class\": \"${CLASS:-GPT2LMHeadModel}\", \"task\": \"causal-lm\", \"adapter\": \"$work/start\",
    \"steps\": $steps, \"learning_rate\": 1e-3, \"batch\": 4}"
cd ../..
train "$work/ours" --max-train-steps "$steps" --init-adapter "$work/start"
"$python" tests/measured/compare.py "$work/theirs/losses.json" "lorabooth, fp32=$work/ours"
