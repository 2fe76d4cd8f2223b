#!/usr/bin/env bash
# Seconds a step, time to the first step and peak memory of lorabooth and of PEFT's loop, one after the other on the same
# weights. VARIANT=sd15 (Stable Diffusion 1.5 shapes, 7 GB on disk while it runs), sdxl (Stable Diffusion XL's, in float16, 7 GB,
# 16 GB of memory for the peer) or tiny; STEPS, RESOLUTION; MODEL: a pipeline folder to measure with instead.
# Of Stable Diffusion XL the UNet trains, with activations recomputed in the backward pass; of others the text encoder too.
# CROP=center: crops are fixed, so that latents are computed once; random otherwise, so that both run the VAE at each step.
set -euo pipefail
cd "$(dirname "$0")/../.."
variant=${VARIANT:-sd15} steps=${STEPS:-6} program=${LORABOOTH:-target/release/lorabooth}
python=${LORABOOTH_PYTHON:-$HOME/.cache/lorabooth/venv/bin/python}
work=$(mktemp -d -p "${WORK:-/tmp}"); trap 'rm -rf "$work"' EXIT
crop=${CROP:-random} dtype=float32 peer='"train_text_encoder": true' ours=(--train-text-encoder)
runs=("fp32=--mixed-precision no" "bf16=--mixed-precision bf16")
if [ "$variant" = sdxl ]; then
  crop=${CROP:-center} dtype=float16 ours=(--gradient-checkpointing --lora-r 4 --lora-alpha 4 --lora-targets to_q,to_k,to_v,to_out.0)
  # As diffusers' script for it: with --cache_latents, and prompts embedded once.
  peer='"gradient_checkpointing": true, "cache": true, "lora": {"r": 4, "lora_alpha": 4, "target_modules": ["to_q", "to_k", "to_v", "to_out.0"]}'
  runs+=("nf4=--mixed-precision bf16 --quantize nf4")
fi
resolution=${RESOLUTION:-$([ "$variant" = sdxl ] && echo 512 || echo 256)}
cd tests/reference
model=${MODEL:-$work/model}
[ -n "${MODEL:-}" ] || "$python" models.py "$model" "{\"variant\": \"$variant\", \"dtype\": \"$dtype\"}"
"$python" sample_photos.py "$work/photos" '{"count": 5}'
if [ "$crop" = center ]; then peer+=', "center_crop": true'; ours+=(--center-crop); fi
common="\"model\": \"$model\", \"instance_data_dir\": \"$work/photos\", \"instance_prompt\": \"a photo of sks dog\""
OMP_NUM_THREADS=${THREADS:-2} "$python" dreambooth_loop.py "$work/theirs" \
  "{$common, \"resolution\": $resolution, $peer, \"max_train_steps\": $steps}"
cd ../..
rows=()
for run in "${runs[@]}"; do
  name=${run%%=*}
  read -ra more <<< "${run#*=}"
  flags=(--device cpu --threads "${THREADS:-2}" --model "$model" --instance-data-dir "$work/photos"
    --resolution "$resolution" --max-train-steps "$steps" "${ours[@]}" "${more[@]}")
  "$program" plan --json "${flags[@]}" > "$work/$name.plan"
  "$program" train dreambooth --quiet "${flags[@]}" --instance-prompt "a photo of sks dog" --output-dir "$work/$name"
  rows+=("lorabooth, $name=$work/$name=$work/$name.plan")
done
"$python" tests/measured/compare.py "$work/theirs/losses.json" "${rows[@]}"
