"""diffusers' samplers and training noise for the cases of cases.json: schedulers.py FOLDER.

cases.json: {"samplers": [{"key", "config", "class", "overrides", "steps", "seeds"}], "schedules": [{"key", "config"}]}.
Writes samplers.safetensors and schedules.safetensors.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

import diffusers
import torch
from diffusers.training_utils import compute_snr
from safetensors.torch import load_file, save_file

warnings.filterwarnings("ignore")
diffusers.logging.set_verbosity_error()
torch.set_num_threads(1)


def own_scheduler(config):
    """The model's own scheduler, read from a folder: from_config forgets which fields a file left open otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "scheduler_config.json").write_text(json.dumps(config))
        return getattr(diffusers, config["_class_name"]).from_pretrained(folder)


def model(sample, t):
    """A fixed nonlinear stand-in for the UNet."""
    return torch.sin(sample * 1.3 + float(t) * 0.01) * 0.7 + sample.cos() * 0.2


def sample(case, start):
    own = own_scheduler(case["config"])
    scheduler = getattr(diffusers, case["class"]).from_config(own.config, **case["overrides"])
    scheduler.set_timesteps(case["steps"])
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in case["seeds"]]
    takes_generator = "generator" in scheduler.step.__code__.co_varnames
    extra = {"generator": generators} if takes_generator else {}
    xs = start * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        output = model(scheduler.scale_model_input(xs, t), t)
        xs = scheduler.step(output, t, xs, **extra).prev_sample
    return xs, scheduler.timesteps.double(), torch.tensor(float(scheduler.init_noise_sigma)).double()


def schedule(case, given):
    scheduler = diffusers.DDPMScheduler.from_config(own_scheduler(case["config"]).config)
    latents, noise, timesteps = given["latents"], given["noise"], given["timesteps"]
    snr = compute_snr(scheduler, timesteps)
    capped = torch.stack([snr, 5.0 * torch.ones_like(timesteps)], dim=1).min(dim=1)[0]
    return {
        "alphas_cumprod": scheduler.alphas_cumprod,
        "noisy": scheduler.add_noise(latents, noise, timesteps),
        "velocity": scheduler.get_velocity(latents, noise, timesteps),
        "snr": snr,
        "weights.epsilon": capped / snr,
        "weights.v_prediction": capped / (snr + 1),
    }


folder = Path(sys.argv[1])
cases = json.loads((folder / "cases.json").read_text())
given = load_file(folder / "given.safetensors")
out = {}
for case in cases["samplers"]:
    final, timesteps, sigma = sample(case, given["start"])
    out |= {f"{case['key']}.final": final, f"{case['key']}.timesteps": timesteps, f"{case['key']}.sigma": sigma}
for case in cases["schedules"]:
    out |= {f"{case['key']}.{name}": tensor for name, tensor in schedule(case, given).items()}
save_file({name: tensor.contiguous().clone() for name, tensor in out.items()}, folder / "out.safetensors")
