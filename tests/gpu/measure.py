"""Runs lorabooth and PEFT's loop on one device, one after the other, and writes report.md and report.json (see run.sh).

A check that fails is named at the end, and the exit code is 1; the others run all the same.
"""

import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

LORABOOTH, PYTHON, DEVICE, VARIANT = (os.environ[name] for name in ("LORABOOTH", "PYTHON", "DEVICE", "VARIANT"))
RESOLUTION, STEPS, OUT = int(os.environ["RESOLUTION"]), int(os.environ["STEPS"]), Path(os.environ["OUT"])
PARTS = os.environ["PARTS"].split()
REFERENCE = Path(__file__).parent.parent / "reference"
WORK = Path(tempfile.mkdtemp())
PROMPT = "a photo of sks dog"
GIGABYTE = 1e9

rows, bits_rows, language_rows, failures, figures = [], [], [], [], {}


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


def dreambooth(out, model, flags, steps, device=DEVICE, resolution=None):
    """The command of a run."""
    command = [LORABOOTH, "train", "dreambooth", "--quiet", "--device", device, "--model", str(model), "--output-dir", str(out)]
    command += ["--instance-data-dir", str(WORK / "photos"), "--instance-prompt", PROMPT, "--center-crop"]
    return [*command, "--resolution", str(resolution or RESOLUTION), "--max-train-steps", str(steps), *flags]


def train(name, model, flags, steps, device=DEVICE, resolution=None, gigabytes=None):
    """A run's metrics and run.json, or None where it failed."""
    out = WORK / name
    command = dreambooth(out, model, flags, steps, device, resolution)
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


def beginning(model, flags, length, steps):
    """Of a run of that length which is stopped after some steps: seconds from its start to its first step's end, and seconds a step."""
    out = WORK / f"stopped-{length}"
    command, began = dreambooth(out, model, flags, length), time.monotonic()
    running, first, lines = subprocess.Popen(command, stderr=subprocess.DEVNULL), None, []
    while running.poll() is None and len(lines) < steps:
        time.sleep(0.02)
        log = out / "metrics.jsonl"
        lines = log.read_text().splitlines() if log.exists() else []
        first = first or (time.monotonic() - began if lines else None)
    running.send_signal(signal.SIGINT)
    running.wait()
    seconds = [json.loads(line)["step_s"] for line in lines[2:steps]]
    return (first, statistics.median(seconds)) if seconds else (math.nan, math.nan)


def searched_convolutions(model):
    """What the search for fast convolutions costs before a run's first step, and what each step has of it: it pays from 1000 steps on."""
    flags = ["--train-text-encoder", "--mixed-precision", "fp16" if DEVICE.startswith("cuda") else "bf16", "--lr-scheduler", "constant"]
    (usual_first, usual), (first, searched) = (
        beginning(model, flags, length, max(STEPS, 3)) for length in (999, 1000)
    )
    check("seconds of the search for fast convolutions", first - usual_first < 60, f"{first - usual_first:.1f} (below 60)")
    saved = 1000 * (usual - searched)
    text = f"{searched:.3f} s for {usual:.3f} s a step: {saved:.0f} s of 1000 steps (more than the search takes)"
    check("steps with searched convolutions", saved > first - usual_first or DEVICE == "cpu", text)


def few_bits(name, model, resolution, flags, bounds):
    """Weights in 16, 8 and 4 bits: peaks beside the plan's, seconds a step, and losses beside bf16's where these are bounded."""
    steps, wanted, dense = min(STEPS, 10), None, math.inf
    for bits in ("bf16", *bounds):
        case = f"{name}, {bits}"
        own = [*flags, "--mixed-precision", "bf16", "--gradient-checkpointing", *([] if bits == "bf16" else ["--quantize", bits])]
        result = train(f"bits-{len(figures)}", model, own, steps, resolution=resolution)
        check(f"trains, {case}", result is not None, "yes" if result else "no")
        if not result:
            continue
        metrics, run = result
        memory = run["peak_memory_bytes"]
        measured = memory["device"] or memory["host_above_start"]
        planned = plan(model, own, resolution)
        step = statistics.median(line["step_s"] for line in metrics[2:])
        bits_rows.append((name, bits, f"{step:.3f}", f"{measured / 2**20:.0f}", f"{planned / 2**20:.0f}"))
        if DEVICE.startswith("cuda"):
            error = planned / measured - 1
            check(f"plan, {case}", abs(error) < 0.1, f"{error:+.1%} of the peak (within 10 %)")
        if bits == "bf16":
            wanted, dense = losses(result), measured
            continue
        if DEVICE.startswith("cuda"):
            check(f"peak, {case}", measured < dense, f"{measured / GIGABYTE:.2f} GB (below bf16's)")
        if bounds[bits]:
            error = difference(losses(result), wanted)
            check(f"losses of {bits} and bf16, {name}", error < bounds[bits], f"{error:.1e} (below {bounds[bits]:.0e})")


def all_few_bits(model):
    """Stable Diffusion 1.5, whose weights are random, and the shapes of XL at 1024 px, whose weights are all 0."""
    large, size = ("sdxl", 1024) if DEVICE.startswith("cuda") else ("tiny-xl", RESOLUTION)
    script("hollow_models.py", WORK / large, {"variant": large})
    few_bits("Stable Diffusion 1.5", model, RESOLUTION, ["--train-text-encoder"], {"int8": 5e-2, "fp8": 5e-2, "nf4": 2e-1})
    few_bits("Stable Diffusion XL", WORK / large, size, ["--lora-r", "8"], {"fp8": None, "nf4": None})


def train_llm(name, job, flags, steps=STEPS):
    """A language run's seconds a step, its peak on the device in bytes and its losses, or None where it failed."""
    out = WORK / name
    command = [LORABOOTH, "train", "llm", "--quiet", "--device", DEVICE, "--model", str(job / "model"), "--train-file", str(job / "train.jsonl")]
    command += ["--no-shuffle", "--max-train-steps", str(steps), "--checkpointing-steps", "100000", "--output-dir", str(out), *flags]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        print(done.stderr, flush=True)
        return None
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    memory = json.loads((out / "run.json").read_text())["peak_memory_bytes"]
    seconds = statistics.median(line["step_s"] for line in metrics[2:]) if steps > 2 else math.nan
    return seconds, memory["device"] or memory["host_above_start"], [line["loss"] for line in metrics]


def language_peer(name, job, kind, options):
    """PEFT's loop from the adapter that a run of no steps wrote: seconds a step, peak bytes, losses."""
    script("language_loop.py", WORK / name, {"job": str(job), "class": kind, "steps": STEPS, "device": DEVICE, **options})
    result = json.loads((WORK / name / "losses.json").read_text())
    return statistics.median(result["seconds"][2:]), (result["peak_device_mib"] or result["peak_rss_mib"]) * 2**20, result["losses"]


def language_models():
    """The launch's two language models, with random weights of their shapes."""
    shapes = Path(__file__).parent.parent / "measured" / "real_shapes.py"
    opt, t0 = WORK / "opt", WORK / "t0"
    subprocess.run([PYTHON, str(shapes), str(opt), "opt-6.7b", '{"words": 64}'], check=True)
    lora = ["--task", "causal-lm", "--lora-r", "16", "--lora-targets", "q_proj,v_proj", "--gradient-checkpointing", "--learning-rate", "1e-4"]
    lora += ["--train-batch-size", "4", "--adam-weight-decay", "0.01"]
    train_llm("opt-start", opt, [*lora, "--mixed-precision", "bf16"], steps=0)
    lora += ["--init-adapter", str(WORK / "opt-start")]
    dense = train_llm("opt-bf16", opt, [*lora, "--mixed-precision", "bf16"])
    int8 = train_llm("opt-int8", opt, [*lora, "--mixed-precision", "bf16", "--load-in-8bit"])
    options = {"task": "causal-lm", "adapter": str(WORK / "opt-start"), "learning_rate": 1e-4, "batch": 4}
    peers = language_peer("opt-peer", opt, "OPTForCausalLM", {**options, "dtype": "bfloat16", "gradient_checkpointing": True})
    shutil.rmtree(opt)
    subprocess.run([PYTHON, str(shapes), str(t0), "t0-3b", '{"words": 64, "answer": 4}'], check=True)
    lora = ["--task", "seq2seq-lm", "--label-column", "label", "--mixed-precision", "bf16", "--lora-r", "8", "--train-batch-size", "8"]
    stayed, offloaded = train_llm("t0", t0, lora), train_llm("t0-offload", t0, [*lora, "--offload", "cpu"])
    shutil.rmtree(t0)
    for name, result, peer_result, bound in [
        ("OPT-6.7B, bf16", dense, peers, 16.0),
        ("OPT-6.7B, 8 bits", int8, peers, 11.0),
        ("T0_3B, bf16", stayed, None, 11.0),
        ("T0_3B, bf16, offload", offloaded, None, 6.0),
    ]:
        check(f"trains, {name}", result is not None, "yes" if result else "no")
        if not result:
            continue
        seconds, peak, _ = result
        check(f"peak, {name}", peak < bound * GIGABYTE, f"{peak / GIGABYTE:.2f} GB (below {bound:g})")
        peer_seconds, peer_peak = peer_result[:2] if peer_result else (math.nan, math.nan)
        theirs = (f"{peer_seconds:.3f}", f"{peer_peak / 2**20:.0f}") if peer_result else ("", "")
        language_rows.append((name, f"{seconds:.3f}", theirs[0], f"{peak / 2**20:.0f}", theirs[1]))
    if dense and int8:
        check("steps a second over PEFT's, OPT-6.7B, bf16", peers[0] / dense[0] >= 1.0, f"{peers[0] / dense[0]:.2f} (at least 1)")
        check("losses of OPT-6.7B and PEFT's, bf16", difference(dense[2], peers[2]) < 2e-2, f"{difference(dense[2], peers[2]):.1e} (below 2e-02)")
        check("losses of 8 bits and bf16", difference(int8[2], dense[2]) < 5e-2, f"{difference(int8[2], dense[2]):.1e} (below 5e-02)")
        check("steps a second of 8 bits over bf16", dense[0] / int8[0] >= 0.6, f"{dense[0] / int8[0]:.2f} (at least 0.6)")
    if stayed and offloaded:
        check("losses with offload and without", difference(offloaded[2], stayed[2]) < 1e-6, f"{difference(offloaded[2], stayed[2]):.1e} (below 1e-06)")


def plan(model, flags, resolution=None):
    """Planned bytes at the peak."""
    command = [LORABOOTH, "plan", "--json", "--device", DEVICE, "--model", str(model), "--center-crop"]
    command += ["--resolution", str(resolution or RESOLUTION)]
    lines = subprocess.run([*command, *flags], check=True, capture_output=True, text=True).stdout.splitlines()
    return next(value["peak_bytes"] for value in map(json.loads, lines) if "peak_bytes" in value)


def ranks(name, model, flags, variables):
    """Losses of a run of several processes, or of a group of one, and what they exchanged gradients through."""
    out = WORK / name
    command = [LORABOOTH, "train", "dreambooth", "--json", "--model", str(model), "--output-dir", str(out), "--instance-prompt", PROMPT]
    command += ["--instance-data-dir", str(WORK / "photos"), "--center-crop", "--resolution", "128", "--train-text-encoder"]
    command += ["--learning-rate", "1e-4", "--mixed-precision", "no", "--max-train-steps", "10", *flags]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True)
    if done.returncode:
        print(done.stdout[-2000:], done.stderr, flush=True)
        return [], "nothing"
    said = [json.loads(line) for line in done.stdout.splitlines()]
    backend = next((line["backend"] for line in said if line.get("name") == "processes"), "nothing")
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()], backend


def data_parallel(model):
    """One rank that goes through NCCL as a group of one, and two ranks where there are two GPUs. On the CPU it is Gloo."""
    on_gpu = DEVICE.startswith("cuda")
    wanted = "NCCL" if on_gpu else "Gloo"
    alone, _ = ranks("alone", model, ["--device", DEVICE], {})
    group = {"LORABOOTH_GROUP_OF_ONE": "1", "RANK": "0", "WORLD_SIZE": "1"}
    of_one, backend = ranks("group-of-one", model, ["--device", DEVICE], group)
    check(f"a group of one exchanges through {wanted}", backend == wanted, backend)
    error = difference(of_one, alone)
    # Its sums are of one number each: what is left is the order in which atomic additions of the backward end.
    check("losses of a group of one and of none", error < 1e-4, f"{error:.1e} (below 1e-04)")
    gpus = 0
    if on_gpu:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True) if shutil.which("nvidia-smi") else None
        gpus = len(listed.stdout.splitlines()) if listed else 0
    if on_gpu and gpus < 2:
        print(f"two ranks through NCCL are left out: this machine has {gpus} GPUs that nvidia-smi lists", flush=True)
        return
    on_cpu, _ = ranks("two-on-cpu", model, ["--device", "cpu", "--processes", "2"], {})
    two, backend = ranks("two", model, ["--gpus", "2"] if on_gpu else ["--device", "cpu", "--processes", "2"], {})
    check(f"two ranks exchange through {wanted}", backend == wanted, backend)
    error = difference(two, on_cpu)
    check(f"losses of two ranks on {DEVICE} and CPU", error < 5e-3, f"{error:.1e} (below 5e-03)")


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    script("sample_photos.py", WORK / "photos", {"count": 5})
    script("models.py", WORK / "tiny4", {"variant": "tiny4"})
    if "numbers" in PARTS:
        same_numbers(WORK / "tiny4")
    if "ranks" in PARTS:
        data_parallel(WORK / "tiny4")
    if "pictures" in PARTS or "bits" in PARTS:
        script("models.py", WORK / VARIANT, {"variant": VARIANT})
    if "pictures" in PARTS:
        memory_and_speed(WORK / VARIANT)
        searched_convolutions(WORK / VARIANT)
    if "bits" in PARTS:
        all_few_bits(WORK / VARIANT)
    if "texts" in PARTS and DEVICE.startswith("cuda"):
        language_models()
    header = ("precision", "s a step", "PEFT's loop", "times as fast", "peak MiB", "PEFT's loop")
    table = [header, ("---",) * len(header), *rows]
    language_header = ("language model", "s a step", "PEFT's loop", "peak MiB", "PEFT's loop")
    language_table = [language_header, ("---",) * len(language_header), *language_rows] if language_rows else []
    bits_header = ("model", "weights", "s a step", "peak MiB", "planned MiB")
    bits_table = [bits_header, ("---",) * len(bits_header), *bits_rows]
    lines = lambda table: "\n".join("| " + " | ".join(row) + " |" for row in table)
    report = "\n\n".join(lines(each) for each in (table, bits_table, language_table))
    (OUT / "report.md").write_text(report + "\n")
    (OUT / "report.json").write_text(json.dumps({"checks": figures, "failures": failures}, indent=2) + "\n")
    print(f"\n{report}\n\nin {OUT}")
    shutil.rmtree(WORK)
    if failures:
        sys.exit("failed: " + "; ".join(failures))


main()
