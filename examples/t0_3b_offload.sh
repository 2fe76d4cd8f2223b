#!/usr/bin/env bash
# T0_3B tells complaints from other tweets, its weights in host memory: PEFT's example peft_lora_seq2seq_accelerate_ds_zero3_offload.py,
# with its numbers.
# Memory: the card holds two blocks, one batch's activations and the adapter; the host 6 GB of bf16 weights as they lie in their files
# (PEFT reports 9.8 GB of GPU memory and 17.8 GB of the host's). Time: 25 steps of 8 tweets, each the whole model forward and backward.
# MODEL: a folder in the transformers layout with safetensors, which as_safetensors.py makes of the hub's pickles; small ones take seconds. LORABOOTH, RECORDS, DEVICE, OUT: as below.
set -euo pipefail
cd "$(dirname "$0")/.."
lorabooth=${LORABOOTH:-target/release/lorabooth} model=${MODEL:-models/t0-3b} device=${DEVICE:-auto} out=${OUT:-runs/t0-3b}
"$lorabooth" train llm --model "$model" --task seq2seq-lm --offload cpu --device "$device" --seed 42 \
  --train-file "${RECORDS:-examples/data/complaints.jsonl}" --text-column "Tweet text" --label-column text_label \
  --lora-r 8 --lora-alpha 32 --lora-dropout 0.1 --train-batch-size 8 --num-train-epochs 5 --learning-rate 3e-3 --lr-scheduler linear \
  --overwrite --output-dir "$out"
"$lorabooth" complete --model "$model" --adapter "$out" --offload cpu --device "$device" --max-new-tokens 10 \
  --prompt "@northrail two hours late and not a word from the driver"
