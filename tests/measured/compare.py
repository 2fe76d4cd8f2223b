"""A table of runs beside the reference's: seconds a step, time to the first step, peak memory of the host, and the plan of it.

    compare.py LOSSES.json "NAME=RUN[=PLAN]"...

LOSSES.json  of a loop in tests/reference, with seconds, first_step_seconds and peak_rss_mib
RUN          the output folder of `lorabooth train`; PLAN: what `lorabooth plan --json` said of it before
"""

import json
import statistics
import sys


def row(theirs, name, folder, plan=None):
    lines = [json.loads(line) for line in open(f"{folder}/metrics.jsonl")]
    run = json.load(open(f"{folder}/run.json"))
    memory = run["peak_memory_bytes"]
    step = statistics.median(line["step_s"] for line in lines[1:])
    first = run["seconds"]["before_training"] + lines[0]["step_s"]
    numbers = (step, first, memory["host"] / 2**20)
    planned = f"{json.load(open(plan))['peak_bytes'] / memory['host_above_start'] - 1:+.1%}" if plan else ""
    ratios = [ours / peer for ours, peer in zip(numbers, theirs)]
    print(f"| {name} | {step:.2f} | {ratios[0]:.2f} | {first:.1f} s | {ratios[1]:.2f} | {numbers[2]:.0f} | {ratios[2]:.2f} | {planned} |")


def main(losses, *runs):
    report = json.load(open(losses))
    theirs = (statistics.median(report["seconds"][1:]), report["first_step_seconds"], report["peak_rss_mib"])
    print("| | s a step | of peer | first step after | of peer | peak host MiB | of peer | plan |\n|---|---|---|---|---|---|---|---|")
    print(f"| PEFT's loop, fp32 | {theirs[0]:.2f} | 1 | {theirs[1]:.1f} s | 1 | {theirs[2]:.0f} | 1 | |")
    for run in runs:
        row(theirs, *run.split("="))


if __name__ == "__main__":
    main(*sys.argv[1:])
