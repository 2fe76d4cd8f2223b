#!/usr/bin/env bash
# What a step of two processes with a thread each costs beside one process with one thread, each with the same batch, on random weights of
# GPT-2's shapes (124M): 4 texts of 128 tokens.
#   tests/measured/data_parallel.sh [PROGRAM]; ROUNDS (3), STEPS (12), WORK: a folder with 1 GB to spare
# Seconds by the clock are the best of all steps, in rounds that take turns; seconds of a core, which other programs on the machine change
# less, are those of a run of STEPS steps less those of one of 2, for each process.
set -euo pipefail
cd "$(dirname "$0")/../.."
program=$(realpath "${1:-target/release/lorabooth}")
python=${LORABOOTH_PYTHON:-$HOME/.cache/lorabooth/venv/bin/python}
work=$(mktemp -d -p "${WORK:-/tmp}"); trap 'rm -rf "$work"' EXIT
"$python" tests/measured/real_shapes.py "$work/job" gpt2 '{"words": 128, "records": 64}'
ROUNDS=${ROUNDS:-3} STEPS=${STEPS:-12} "$python" - "$program" "$work" <<'PY'
import json, os, pathlib, resource, shutil, subprocess, sys

program, work = sys.argv[1], pathlib.Path(sys.argv[2])
rounds, steps = int(os.environ["ROUNDS"]), int(os.environ["STEPS"])


def run(processes, steps):
    """Seconds of a core of all processes, and by the clock of each step but the first."""
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [program, "train", "llm", "--quiet", "--device", "cpu", "--threads", "1", "--mixed-precision", "no", "--task", "causal-lm",
         "--train-batch-size", "4", "--lora-r", "8", "--model", work / "job/model", "--train-file", work / "job/train.jsonl",
         "--max-train-steps", str(steps), "--output-dir", out, "--processes", str(processes)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, [json.loads(line)["step_s"] for line in open(out / "metrics.jsonl")][1:]


clock, core = {1: [], 2: []}, {1: [], 2: []}
for _ in range(rounds):
    for processes in clock:
        few, many = run(processes, 2), run(processes, steps)
        clock[processes] += many[1]
        core[processes].append((many[0] - few[0]) / (steps - 2) / processes)
for name, values in ("by the clock", clock), ("of a core", core):
    one, two = min(values[1]), min(values[2])
    print(f"seconds {name}: one process {one:.3f}, each of two {two:.3f}, {two / one:.2f} times")
PY
