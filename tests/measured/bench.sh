#!/usr/bin/env bash
# Seconds a step, time to the first step and peak memory of lorabooth and of PEFT's loop, one after the other on the same
# weights. VARIANT=sd15 (Stable Diffusion 1.5 shapes, 7 GB on disk while it runs) or tiny; STEPS, RESOLUTION;
# MODEL: a pipeline folder to measure with instead. CROP=center: crops are fixed, so that latents are computed once; random
# otherwise, so that both run the VAE at each step.
set -euo pipefail
cd "$(dirname "$0")/../.."
variant=${VARIANT:-sd15} steps=${STEPS:-6} resolution=${RESOLUTION:-256}
python=${LORABOOTH_PYTHON:-$HOME/.cache/lorabooth/venv/bin/python}
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cd tests/reference
model=${MODEL:-$work/model}
[ -n "${MODEL:-}" ] || "$python" models.py "$model" "{\"variant\": \"$variant\"}"
"$python" sample_photos.py "$work/photos" '{"count": 5}'
crop=false crop_flag=()
if [ "${CROP:-random}" = center ]; then crop=true crop_flag=(--center-crop); fi
common="\"model\": \"$model\", \"instance_data_dir\": \"$work/photos\", \"instance_prompt\": \"a photo of sks dog\""
OMP_NUM_THREADS=${THREADS:-2} "$python" dreambooth_loop.py "$work/theirs" \
  "{$common, \"resolution\": $resolution, \"center_crop\": $crop, \"train_text_encoder\": true, \"max_train_steps\": $steps}"
cd ../..
for precision in no bf16; do
  flags=(--device cpu --threads "${THREADS:-2}" --mixed-precision $precision --model "$model" --instance-data-dir "$work/photos"
    --resolution "$resolution" --train-text-encoder --max-train-steps "$steps" "${crop_flag[@]}")
  target/release/lorabooth plan --json "${flags[@]}" > "$work/$precision.plan"
  target/release/lorabooth train dreambooth --quiet "${flags[@]}" --instance-prompt "a photo of sks dog" --output-dir "$work/$precision"
done
"$python" tests/measured/compare.py "$work/theirs/losses.json" "lorabooth, fp32=$work/no=$work/no.plan" "lorabooth, bf16=$work/bf16=$work/bf16.plan"
