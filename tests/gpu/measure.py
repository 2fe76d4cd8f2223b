"""Runs lorabooth and PEFT's loop on one device, one after the other, and writes report.md and report.json (see run.sh).

A check that fails is named at the end, and the exit code is 1; the others run all the same.
"""

import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

LORABOOTH, PYTHON, DEVICE, VARIANT = (os.environ[name] for name in ("LORABOOTH", "PYTHON", "DEVICE", "VARIANT"))
RESOLUTION, STEPS, OUT = int(os.environ["RESOLUTION"]), int(os.environ["STEPS"]), Path(os.environ["OUT"])
REFERENCE = Path(__file__).parent.parent / "reference"
WORK = Path(tempfile.mkdtemp())
PROMPT = "a photo of sks dog"
GIGABYTE = 1e9

rows, failures, figures = [], [], {}


def check(name, holds, figure):
    print(f"{'ok  ' if holds else 'FAIL'}  {name}: {figure}", flush=True)
    figures[name] = figure
    if not holds:
        failures.append(name)


def script(name, out, options):
    subprocess.run([PYTHON, name, str(out), json.dumps(options)], cwd=REFERENCE, check=True, stdout=subprocess.DEVNULL)


def cap(gigabytes):
    """The environment that keeps libtorch's allocator under so much of the card."""
    if gigabytes is None or not DEVICE.startswith("cuda"):
        return {}
    import torch

    fraction = gigabytes * GIGABYTE / torch.cuda.mem_get_info()[1]
    return {"PYTORCH_CUDA_ALLOC_CONF": f"per_process_memory_fraction:{fraction:.6f}"}


def train(name, model, flags, steps, device=DEVICE, resolution=None, gigabytes=None):
    """A run's metrics and run.json, or None where it failed."""
    out = WORK / name
    command = [LORABOOTH, "train", "dreambooth", "--quiet", "--device", device, "--model", str(model), "--output-dir", str(out)]
    command += ["--instance-data-dir", str(WORK / "photos"), "--instance-prompt", PROMPT, "--center-crop"]
    command += ["--resolution", str(resolution or RESOLUTION), "--max-train-steps", str(steps), *flags]
    done = subprocess.run(command, env=os.environ | cap(gigabytes), capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, flush=True)
        return None
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return metrics, json.loads((out / "run.json").read_text())


def losses(result):
    return [line["loss"] for line in result[0]] if result else []


def difference(ours, theirs):
    """The largest relative one; infinite where a run is missing or has no numbers."""
    if not ours or len(ours) != len(theirs):
        return math.inf
    worst = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs))
    return math.inf if math.isnan(worst) else worst


def same_numbers(model):
    """The draws are the same on any device, so losses are, but for rounding (convolutions use TF32 on CUDA, as torch's do)."""
    both = ["--train-text-encoder", "--learning-rate", "1e-4"]
    wanted = losses(train("cpu", model, [*both, "--mixed-precision", "no"], 10, "cpu", 128))
    cases = {
        "fp32": (["--mixed-precision", "no"], 5e-3),
        "fp32, gradient checkpointing": (["--mixed-precision", "no", "--gradient-checkpointing"], 5e-3),
        "bf16": (["--mixed-precision", "bf16"], 5e-2),
        "fp16": (["--mixed-precision", "fp16"], 5e-2),
        "8-bit AdamW": (["--mixed-precision", "no", "--use-8bit-adam"], 2e-2),
    }
    for name, (flags, bound) in cases.items():
        if DEVICE == "cpu" and name == "fp16":
            continue
        error = difference(losses(train(f"same-{len(figures)}", model, [*both, *flags], 10, resolution=128)), wanted)
        check(f"losses of {DEVICE} and CPU, {name}", error < bound, f"{error:.1e} (below {bound:.0e})")
    for device in {"cpu", DEVICE}:
        subprocess.run(
            [LORABOOTH, "generate", "--quiet", "--device", device, "--dtype", "fp32", "--model", str(model), "--prompt", PROMPT,
             "--steps", "10", "--height", "128", "--width", "128", "--output", str(WORK / f"{device}.png")],
            check=True,
        )
    import numpy
    from PIL import Image

    ours, theirs = (numpy.asarray(Image.open(WORK / f"{device}.png"), dtype=float) for device in (DEVICE, "cpu"))
    psnr = 10 * math.log10(255**2 / max(((ours - theirs) ** 2).mean(), 1e-9))
    check(f"image of {DEVICE} and CPU", psnr > 35, f"{psnr:.1f} dB (above 35)")


def peer(name, model, options):
    """PEFT's loop: seconds a step and peak MiB."""
    lora = dict(r=16, lora_alpha=27, lora_dropout=0.0, bias="none")
    script("dreambooth_loop.py", WORK / name, {
        "model": str(model), "instance_data_dir": str(WORK / "photos"), "instance_prompt": PROMPT, "center_crop": True,
        "resolution": RESOLUTION, "train_text_encoder": True, "max_train_steps": STEPS, "device": DEVICE,
        "lora": {**lora, "target_modules": ["to_q", "to_v"]}, "lora_text_encoder": {**lora, "target_modules": ["q_proj", "v_proj"]},
        **options,
    })
    result = json.loads((WORK / name / "losses.json").read_text())
    return statistics.median(result["seconds"][2:]), result["peak_device_mib"] or result["peak_rss_mib"]


def memory_and_speed(model):
    lora = "--lora-r 16 --lora-text-encoder-r 16 --lora-alpha 27 --lora-text-encoder-alpha 27 --train-text-encoder".split()
    for precision in ["bf16"] if DEVICE == "cpu" else ["bf16", "fp16"]:
        for checkpointing in (True, False):
            name = f"{precision}{', gradient checkpointing' if checkpointing else ''}"
            flags = [*lora, "--mixed-precision", precision, *(["--gradient-checkpointing"] if checkpointing else [])]
            bound = 4.0 if checkpointing else 11.0
            result = train(f"{precision}-{checkpointing}", model, flags, STEPS, gigabytes=bound)
            seconds, peak = peer(f"peer-{precision}-{checkpointing}", model, {"mixed_precision": precision, "gradient_checkpointing": checkpointing})
            check(f"trains under a cap of {bound} GB, {name}", result is not None, "yes" if result else "no")
            if not result:
                continue
            metrics, run = result
            step = statistics.median(line["step_s"] for line in metrics[2:])
            memory = run["peak_memory_bytes"]
            measured = memory["device"] or memory["host_above_start"]
            check(f"peak, {name}", measured < bound * GIGABYTE, f"{measured / GIGABYTE:.2f} GB (below {bound:g})")
            check(f"steps a second over PEFT's, {name}", seconds / step >= 1.5, f"{seconds / step:.2f} (at least 1.5)")
            planned = plan(model, flags)
            error = planned / measured - 1
            check(f"plan, {name}", abs(error) < 0.1, f"{error:+.1%} of the peak (within 10 %)")
            rows.append((name, f"{step:.3f}", f"{seconds:.3f}", f"{seconds / step:.2f}", f"{measured / 2**20:.0f}", f"{peak:.0f}"))


def plan(model, flags):
    """Planned bytes at the peak."""
    command = [LORABOOTH, "plan", "--json", "--device", DEVICE, "--model", str(model), "--resolution", str(RESOLUTION), "--center-crop"]
    lines = subprocess.run([*command, *flags], check=True, capture_output=True, text=True).stdout.splitlines()
    return next(value["peak_bytes"] for value in map(json.loads, lines) if "peak_bytes" in value)


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    script("sample_photos.py", WORK / "photos", {"count": 5})
    script("models.py", WORK / "tiny4", {"variant": "tiny4"})
    script("models.py", WORK / VARIANT, {"variant": VARIANT})
    same_numbers(WORK / "tiny4")
    memory_and_speed(WORK / VARIANT)
    header = ("precision", "s a step", "PEFT's loop", "times as fast", "peak MiB", "PEFT's loop")
    table = [header, ("---",) * len(header), *rows]
    report = "\n".join("| " + " | ".join(row) + " |" for row in table)
    (OUT / "report.md").write_text(report + "\n")
    (OUT / "report.json").write_text(json.dumps({"checks": figures, "failures": failures}, indent=2) + "\n")
    print(f"\n{report}\n\nin {OUT}")
    shutil.rmtree(WORK)
    if failures:
        sys.exit("failed: " + "; ".join(failures))


main()
