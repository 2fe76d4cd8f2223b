"""Optimizers, schedules, clipping and losses of the reference libraries, from seeded random inputs.

usage: optimizers.py adamw|adamw8bit|schedules|clip|losses FOLDER   writes FOLDER/<name>.safetensors or .json
       optimizers.py events FOLDER                                  reads FOLDER's event files into events.json
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

STEPS = 100


def initial_parameters(generator):
    """Two small ones, two of at least 4096 elements (one no multiple of 256), one that never gets a gradient."""
    shapes = {"a": (7, 5), "b": (33,), "c": (16, 320), "d": (67, 101), "unused": (3,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def gradient(name, shape, step):
    """A drift and noise, spread over magnitudes; what the Rust side reads back from the file."""
    generator = torch.Generator().manual_seed(1000 * step + ord(name[0]))
    noise = torch.randn(shape, generator=generator)
    return (noise + 0.3) * 10 ** (-(step % 4))


def run(optimizer_of, folder, file, keep_every):
    torch.manual_seed(0)
    initial = initial_parameters(torch.Generator().manual_seed(0))
    params = {name: torch.nn.Parameter(value.clone()) for name, value in initial.items()}
    optimizer = optimizer_of(list(params.values()))
    out = {f"initial.{name}": value for name, value in initial.items()}
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / (2 * STEPS))
        for name, param in params.items():
            # b gets its first gradient later, and one in between is missing.
            absent = name == "unused" or (name == "b" and (step < 3 or step == 50))
            param.grad = None if absent else gradient(name, param.shape, step)
            if not absent:
                out[f"grad.{step}.{name}"] = param.grad.clone()
        optimizer.step()
        if (step + 1) % keep_every == 0:
            out |= {f"after.{step + 1}.{name}": param.detach().clone() for name, param in params.items()}
    save_file(out, folder / file)


def adamw(folder):
    run(lambda params: torch.optim.AdamW(params, weight_decay=0.02), folder, "adamw.safetensors", 10)


def adamw8bit(folder):
    import bitsandbytes
    from bitsandbytes import functional
    from bitsandbytes.backends.cpu import ops

    # For float32 bitsandbytes' CPU kernel takes a short cut: near zero its codes are not the nearest (off by up to 3e-5
    # of the block's largest value). Other kinds of number take its plain path, which is exact.
    def exactly(values, code, absmax_out, out, blocksize):
        codes, absmax = torch.ops.bitsandbytes.quantize_blockwise(values.double(), code, blocksize)
        out.copy_(codes)
        absmax_out.copy_(absmax)

    ops._quant_blockwise_fp32_direct = exactly
    run(lambda params: bitsandbytes.optim.AdamW8bit(params, weight_decay=0.02), folder, "adamw8bit.safetensors", 10)
    generator = torch.Generator().manual_seed(1)
    out = {}
    for signed in (True, False):
        name = "signed" if signed else "unsigned"
        code = functional.create_dynamic_map(signed=signed)
        values = torch.randn(5000, generator=generator) * 10 ** torch.empty(5000).uniform_(-6, 1, generator=generator)
        values = values if signed else values.abs()
        codes, absmax = torch.ops.bitsandbytes.quantize_blockwise(values.double(), code, 256)
        back = torch.ops.bitsandbytes.dequantize_blockwise(codes, absmax, code, 256, torch.float32)
        fast, _ = torch.ops.bitsandbytes.quantize_blockwise(values, code, 256)
        fast = torch.ops.bitsandbytes.dequantize_blockwise(fast, absmax, code, 256, torch.float32)
        parts = {"map": code, "values": values, "codes": codes, "absmax": absmax, "back": back, "fast": fast}
        out |= {f"{name}.{part}": value for part, value in parts.items()}
    save_file(out, folder / "quantize.safetensors")


def schedules(folder):
    from diffusers.optimization import get_scheduler as of_diffusers
    from transformers import get_scheduler as of_transformers

    out = []
    for warmup in (0, 13):
        for kind, extra in [
            ("linear", {}),
            ("cosine", {}),
            ("cosine_with_restarts", {"num_cycles": 1}),
            ("cosine_with_restarts", {"num_cycles": 3}),
            ("polynomial", {"power": 1.0}),
            ("polynomial", {"power": 2.5}),
            ("constant", {}),
            ("constant_with_warmup", {}),
        ]:
            lr, total = 3e-4, 90  # ten steps beyond the end
            curves = []
            for library in ("diffusers", "transformers"):
                optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=lr)
                counts = {"num_warmup_steps": warmup, "num_training_steps": total}
                if library == "diffusers":
                    scheduler = of_diffusers(kind, optimizer, **counts, **extra)
                else:
                    scheduler = of_transformers(kind, optimizer, **counts, scheduler_specific_kwargs=extra)
                rates = []
                for _ in range(STEPS):
                    rates.append(scheduler.get_last_lr()[0])
                    optimizer.step()
                    scheduler.step()
                curves.append(rates)
            out.append({"kind": kind, "warmup": warmup, "total": total, "lr": lr, "curves": curves, **extra})
    (folder / "schedules.json").write_text(json.dumps(out))


def clip(folder):
    generator = torch.Generator().manual_seed(4)
    out = {}
    for case, size in enumerate((0.01, 100.0)):
        params = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((5, 7), (300,), ())]
        for i, param in enumerate(params):
            param.grad = size * torch.randn(param.shape, generator=generator)
            out[f"{case}.before.{i}"] = param.grad.clone()
        out[f"{case}.norm"] = torch.nn.utils.clip_grad_norm_(params, 1.0)
        out |= {f"{case}.after.{i}": param.grad for i, param in enumerate(params)}
    save_file(out, folder / "clip.safetensors")


def losses(folder):
    """Each case in the script's own steps; min-SNR on the instance half where classes are in the batch."""
    import torch.nn.functional as F
    from diffusers import DDPMScheduler
    from diffusers.training_utils import compute_snr

    generator = torch.Generator().manual_seed(5)
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    prediction = torch.randn(6, 4, 3, 5, generator=generator)
    target = torch.randn(6, 4, 3, 5, generator=generator)
    timesteps = torch.tensor([0, 10, 250, 500, 900, 999])
    snr = compute_snr(scheduler, timesteps)
    out = {"prediction": prediction, "target": target, "timesteps": timesteps, "alphas_cumprod": scheduler.alphas_cumprod, "snr": snr}
    for gamma in (None, 5.0):
        for kind in ("epsilon", "v_prediction"):
            for prior_weight in (None, 0.7):
                ours, theirs, rows = prediction.clone().requires_grad_(), target, slice(None)
                leaf = ours
                if prior_weight is not None:
                    ours, ours_prior = torch.chunk(ours, 2, dim=0)
                    theirs, theirs_prior = torch.chunk(theirs, 2, dim=0)
                    rows = slice(0, 3)
                if gamma is None:
                    loss = F.mse_loss(ours.float(), theirs.float(), reduction="mean")
                else:
                    weights = torch.stack([snr, gamma * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
                    weights = weights / snr if kind == "epsilon" else weights / (snr + 1)
                    loss = F.mse_loss(ours.float(), theirs.float(), reduction="none").mean(dim=[1, 2, 3])
                    loss = (loss * weights[rows]).mean()
                name = f"{gamma}.{kind}.{prior_weight}"
                out[f"{name}.instance"] = loss.detach().clone()
                if prior_weight is not None:
                    prior = F.mse_loss(ours_prior.float(), theirs_prior.float(), reduction="mean")
                    out[f"{name}.prior"] = prior.detach().clone()
                    loss = loss + prior_weight * prior
                loss.backward()
                out[f"{name}.total"] = loss.detach().clone()
                out[f"{name}.grad"] = leaf.grad.contiguous()
    save_file({name: value.contiguous() for name, value in out.items()}, folder / "losses.safetensors")


def events(folder):
    import io

    from PIL import Image
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    tags = accumulator.Tags()
    out = {
        "scalars": {tag: [[e.step, e.value] for e in accumulator.Scalars(tag)] for tag in tags["scalars"]},
        "images": {
            tag: [[e.step, e.width, e.height, *Image.open(io.BytesIO(e.encoded_image_string)).size] for e in accumulator.Images(tag)]
            for tag in tags["images"]
        },
    }
    (folder / "events.json").write_text(json.dumps(out))


if __name__ == "__main__":
    globals()[sys.argv[1]](Path(sys.argv[2]))
