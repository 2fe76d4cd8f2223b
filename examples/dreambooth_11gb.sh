#!/usr/bin/env bash
# Stable Diffusion learns a subject from six photos: LoRA on UNet and text encoder with prior preservation, PEFT's launch command for
# train_dreambooth.py, on a card of 11 GB.
# Memory: 3.5 GB in half precision, 2.6 GB with --gradient-checkpointing (`lorabooth plan`; PEFT reports 15.5 and 8.1 GB for its own).
# Time: 200 images of the class are drawn, then 800 steps; `lorabooth plan` with these flags says how long on your machine.
# MODEL: a folder in the diffusers layout or a hub id; small ones take seconds. LORABOOTH, PHOTOS, RESOLUTION, CLASS_IMAGES, STEPS,
# DEVICE, OUT: as below.
set -euo pipefail
cd "$(dirname "$0")/.."
lorabooth=${LORABOOTH:-target/release/lorabooth} model=${MODEL:-stable-diffusion-v1-5/stable-diffusion-v1-5} device=${DEVICE:-auto}
out=${OUT:-runs/dreambooth-11gb} size=${RESOLUTION:-512}
"$lorabooth" train dreambooth --model "$model" --train-text-encoder --device "$device" --resolution "$size" \
  --instance-data-dir "${PHOTOS:-assets/subject}" --instance-prompt "a photo of sks bird" \
  --with-prior-preservation --class-data-dir "$out/class" --class-prompt "a photo of bird" --num-class-images "${CLASS_IMAGES:-200}" \
  --lora-r 16 --lora-alpha 27 --lora-text-encoder-r 16 --lora-text-encoder-alpha 17 \
  --train-batch-size 1 --learning-rate 1e-4 --max-train-steps "${STEPS:-800}" --overwrite --output-dir "$out/adapter"
"$lorabooth" generate --model "$model" --lora "$out/adapter" --device "$device" --height "$size" --width "$size" \
  --prompt "sks bird on the moon" --overwrite --output "$out/bird.png"
