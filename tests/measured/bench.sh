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
"$python" - "$work" <<'PY'
import json, statistics, sys
work = sys.argv[1]
theirs = json.load(open(f"{work}/theirs/losses.json"))
peer = statistics.median(theirs["seconds"][1:])
print("| | s a step | of peer | first step after | of peer | peak host MiB | of peer | plan |\n|---|---|---|---|---|---|---|---|")
print(f"| PEFT's loop, fp32 | {peer:.2f} | 1 | {theirs['first_step_seconds']:.1f} s | 1 | {theirs['peak_rss_mib']:.0f} | 1 | |")
for precision, name in (("no", "fp32"), ("bf16", "bf16")):
    lines = [json.loads(line) for line in open(f"{work}/{precision}/metrics.jsonl")]
    run = json.load(open(f"{work}/{precision}/run.json"))
    step = statistics.median(line["step_s"] for line in lines[1:])
    first = run["seconds"]["before_training"] + lines[0]["step_s"]
    peak = run["peak_memory_bytes"]["host"] / 2**20
    plan = json.load(open(f"{work}/{precision}.plan"))["peak_bytes"] / run["peak_memory_bytes"]["host_above_start"] - 1
    print(f"| lorabooth, {name} | {step:.2f} | {step / peer:.2f} | {first:.1f} s | {first / theirs['first_step_seconds']:.2f} | {peak:.0f} | {peak / theirs['peak_rss_mib']:.2f} | {plan:+.1%} |")
PY
