#!/usr/bin/env bash
# What a step of two processes with a thread each costs beside one process with one thread, each with the same batch, on random weights of
# published shapes: Stable Diffusion 1.5 (UNet and text encoder, r 16, one photo of 256 px), and GPT-2 (124M, 4 texts of 128 tokens).
#   tests/measured/data_parallel.sh [PROGRAM]; SHAPES ("sd15 gpt2"), ROUNDS (3), STEPS (6), WORK: a folder with 5 GB to spare
# Seconds by the clock are the best of all steps but the first, in rounds that take turns, and need two cores that are free; seconds of a
# core, which other programs on the machine change less, are those of a run of STEPS steps less those of one of 2, for each process.
set -euo pipefail
cd "$(dirname "$0")/../.."
program=$(realpath "${1:-target/release/lorabooth}")
python=${LORABOOTH_PYTHON:-$HOME/.cache/lorabooth/venv/bin/python}
work=$(mktemp -d -p "${WORK:-/tmp}"); trap 'rm -rf "$work"' EXIT
common="--quiet --device cpu --threads 1 --mixed-precision no"
for shape in ${SHAPES:-sd15 gpt2}; do
  case $shape in
    sd15)
      (cd tests/reference && "$python" models.py "$work/model" '{"variant": "sd15"}' && "$python" sample_photos.py "$work/photos" '{"count": 5}')
      command="train dreambooth $common --model $work/model --instance-data-dir $work/photos --instance-prompt sks --resolution 256 --center-crop
        --train-text-encoder --lora-r 16 --lora-text-encoder-r 16" ;;
    gpt2)
      "$python" tests/measured/real_shapes.py "$work/job" gpt2 '{"words": 128, "records": 64}'
      command="train llm $common --model $work/job/model --train-file $work/job/train.jsonl --task causal-lm --train-batch-size 4 --lora-r 8" ;;
  esac
  ROUNDS=${ROUNDS:-3} STEPS=${STEPS:-6} "$python" - "$shape" "$work/out" "$program" $command <<'PY'
import json, os, pathlib, resource, shutil, subprocess, sys

shape, out, command = sys.argv[1], pathlib.Path(sys.argv[2]), sys.argv[3:]
rounds, steps, limit = int(os.environ["ROUNDS"]), int(os.environ["STEPS"]), 1.15


def run(processes, steps):
    """Seconds of a core of all processes, and by the clock of each step but the first."""
    shutil.rmtree(out, ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*command, "--max-train-steps", str(steps), "--output-dir", out, "--processes", str(processes)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    core = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return core, [json.loads(line)["step_s"] for line in open(out / "metrics.jsonl")][1:]


clock, core = {1: [], 2: []}, {1: [], 2: []}
for _ in range(rounds):
    for processes in clock:
        few, many = run(processes, 2), run(processes, steps)
        clock[processes] += many[1]
        core[processes].append((many[0] - few[0]) / (steps - 2) / processes)
(one, two), (one_core, two_core) = ((min(values[1]), min(values[2])) for values in (clock, core))
print(f"{shape}: a step of each of two processes beside one alone: by the clock {two:.3f} / {one:.3f} s = {two / one:.2f} "
      f"(at most {limit}), of a core {two_core:.3f} / {one_core:.3f} s = {two_core / one_core:.2f}", flush=True)
PY
  rm -rf "${work:?}"/*
done
