#!/usr/bin/env bash
# Seconds a step, time to the first step and peak memory of lorabooth and of PEFT's loop, one after the other on the same
# weights. VARIANT=sd15 (Stable Diffusion 1.5 shapes, 7 GB on disk while it runs) or tiny; STEPS, RESOLUTION;
# MODEL: a pipeline folder to measure with instead.
set -euo pipefail
cd "$(dirname "$0")/../.."
variant=${VARIANT:-sd15} steps=${STEPS:-6} resolution=${RESOLUTION:-256}
python=${LORABOOTH_PYTHON:-$HOME/.cache/lorabooth/venv/bin/python}
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
cd tests/reference
model=${MODEL:-$work/model}
[ -n "${MODEL:-}" ] || "$python" models.py "$model" "{\"variant\": \"$variant\"}"
"$python" sample_photos.py "$work/photos" '{"count": 5}'
common="\"model\": \"$model\", \"instance_data_dir\": \"$work/photos\", \"instance_prompt\": \"a photo of sks dog\""
OMP_NUM_THREADS=${THREADS:-2} "$python" dreambooth_loop.py "$work/theirs" \
  "{$common, \"resolution\": $resolution, \"train_text_encoder\": true, \"max_train_steps\": $steps}"
cd ../..
for precision in no bf16; do
  target/release/lorabooth train dreambooth --quiet --threads "${THREADS:-2}" --device cpu --mixed-precision $precision \
    --model "$model" --instance-data-dir "$work/photos" --instance-prompt "a photo of sks dog" \
    --resolution "$resolution" --train-text-encoder --max-train-steps "$steps" --output-dir "$work/$precision"
done
"$python" - "$work" <<'PY'
import json, statistics, sys
work = sys.argv[1]
theirs = json.load(open(f"{work}/theirs/losses.json"))
peer = statistics.median(theirs["seconds"][1:])
print("| | s a step | of peer | first step after | of peer | peak host MiB | of peer |\n|---|---|---|---|---|---|---|")
print(f"| PEFT's loop, fp32 | {peer:.2f} | 1 | {theirs['first_step_seconds']:.1f} s | 1 | {theirs['peak_rss_mib']:.0f} | 1 |")
for precision, name in (("no", "fp32"), ("bf16", "bf16")):
    lines = [json.loads(line) for line in open(f"{work}/{precision}/metrics.jsonl")]
    run = json.load(open(f"{work}/{precision}/run.json"))
    step = statistics.median(line["step_s"] for line in lines[1:])
    first = run["seconds"]["before_training"] + lines[0]["step_s"]
    peak = run["peak_memory_bytes"]["host"] / 2**20
    print(f"| lorabooth, {name} | {step:.2f} | {step / peer:.2f} | {first:.1f} s | {first / theirs['first_step_seconds']:.2f} | {peak:.0f} | {peak / theirs['peak_rss_mib']:.2f} |")
PY
