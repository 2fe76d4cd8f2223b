#!/usr/bin/env bash
# OPT-6.7B learns quotes, its weights in 8 bits: PEFT's notebook Finetune_opt_bnb_peft.ipynb, with its numbers.
# Memory: 6.7 GB of weights in 8 bits, 8.4 million trained numbers, and activations that are computed again block by block (the notebook
# runs on a T4 of 16 GB). Time: 200 steps of 4 times 4 quotes.
# MODEL: a folder in the transformers layout with safetensors, which as_safetensors.py makes of the hub's pickles; small ones take seconds. LORABOOTH, RECORDS, STEPS, DEVICE, OUT: as below.
set -euo pipefail
cd "$(dirname "$0")/.."
lorabooth=${LORABOOTH:-target/release/lorabooth} model=${MODEL:-models/opt-6.7b} device=${DEVICE:-auto} out=${OUT:-runs/opt-6.7b}
"$lorabooth" train llm --model "$model" --task causal-lm --load-in-8bit --gradient-checkpointing --device "$device" \
  --train-file "${RECORDS:-examples/data/quotes.jsonl}" --text-column quote \
  --lora-r 16 --lora-alpha 32 --lora-targets q_proj,v_proj --lora-dropout 0.05 \
  --train-batch-size 4 --gradient-accumulation-steps 4 --max-train-steps "${STEPS:-200}" \
  --learning-rate 2e-4 --lr-scheduler linear --lr-warmup-steps 100 --adam-weight-decay 0 --overwrite --output-dir "$out"
"$lorabooth" complete --model "$model" --adapter "$out" --load-in-8bit --device "$device" --max-new-tokens 50 \
  --prompt "Two things are infinite: "
