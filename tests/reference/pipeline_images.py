"""Makes images with diffusers' StableDiffusionPipeline, or StableDiffusionXLPipeline for models of two text encoders.

    pipeline_images.py OUT_DIR '[{"name": "ddim", "model": DIR, "prompt": "a photo of sks dog", "scheduler": "ddim"}, …]'

Of each job are written OUT_DIR/NAME-0.png, NAME-1.png, … and NAME.safetensors with the final `latents` [n, 4, h, w].
name, model, prompt   model: a pipeline folder, or with "config": DIR a single-file checkpoint
negative_prompt       none
options               more arguments of the call, of SDXL's: prompt_2, guidance_rescale, original_size, crops_coords_top_left, target_size
seed, num_images      0 and 1: image i has the generator of seed + i
steps, guidance_scale 30 and 7.5
scheduler             one of SCHEDULERS; none: the model's own
height, width         none: the model's own
loras                 a list, all of one kind, of {"peft": DIR} (with unet/ and perhaps text_encoder/), or {"file": FILE}
                      (diffusers or kohya), each with "scale", 1.0; a warning of the libraries, or a key of the file
                      that is not used, is a failure
vae_tiling            whether the VAE decodes in tiles, false
"""

import json
import sys
from pathlib import Path

import diffusers
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

import complaints

SCHEDULERS = {
    "pndm": ("PNDMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-a": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "lms": ("LMSDiscreteScheduler", {}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "unipc": ("UniPCMultistepScheduler", {}),
}


def load(model, config=None):
    if (Path(config or model) / "text_encoder_2").exists():
        options = dict(torch_dtype=torch.float32, add_watermarker=False)
        if config:
            return StableDiffusionXLPipeline.from_single_file(model, config=config, local_files_only=True, **options)
        return StableDiffusionXLPipeline.from_pretrained(model, **options)
    options = dict(safety_checker=None, torch_dtype=torch.float32)
    if config:
        return StableDiffusionPipeline.from_single_file(model, config=config, local_files_only=True, **options)
    return StableDiffusionPipeline.from_pretrained(model, **options)


def add_peft_folders(pipeline, loras):
    names = [f"adapter{i}" for i in range(len(loras))]
    for part in ("unet", "text_encoder", "text_encoder_2"):
        if not hasattr(pipeline, part):
            continue
        model, loaded = getattr(pipeline, part), []
        for name, lora in zip(names, loras):
            folder = Path(lora["peft"]) / part
            if not folder.exists():
                continue
            if isinstance(model, PeftModel):
                result = model.load_adapter(folder, adapter_name=name)
                assert not result.unexpected_keys, result.unexpected_keys
            else:
                model = PeftModel.from_pretrained(model, folder, adapter_name=name)
            loaded.append(name)
            assert any(name in key and "lora_B" in key and value.any() for key, value in model.state_dict().items()), f"{folder}: nothing was loaded"
            for layer in model.modules():
                if isinstance(layer, LoraLayer) and name in layer.scaling:
                    layer.scaling[name] *= lora.get("scale", 1.0)
        if loaded:
            model.base_model.set_adapter(loaded)
            setattr(pipeline, part, model.eval())


def count_pairs(pipeline):
    """How many matrices of adapters are on the networks."""
    networks = [getattr(pipeline, part) for part in ("unet", "text_encoder", "text_encoder_2") if hasattr(pipeline, part)]
    names = [name for network in networks for name, _ in network.named_parameters()]
    return sum(".lora_A." in name or ".lora_B." in name for name in names)


def add_files(pipeline, loras):
    names = [f"adapter{i}" for i in range(len(loras))]
    for name, lora in zip(names, loras):
        path = Path(lora["file"])
        before = count_pairs(pipeline)
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)
        written = sum(key.endswith((".lora_A.weight", ".lora_B.weight", "down.weight", "up.weight")) for key in load_file(path))
        assert count_pairs(pipeline) - before == written, (path, count_pairs(pipeline) - before, written)
    pipeline.set_adapters(names, [lora.get("scale", 1.0) for lora in loras])


def run(out, name, model, prompt, negative_prompt=None, seed=0, num_images=1, steps=30, guidance_scale=7.5, scheduler=None, height=None, width=None, loras=(), config=None, vae_tiling=False, options=None):
    pipeline = load(model, config)
    pipeline.set_progress_bar_config(disable=True)
    if scheduler:
        class_name, options = SCHEDULERS[scheduler]
        pipeline.scheduler = getattr(diffusers, class_name).from_config(pipeline.scheduler.config, **options)
    if loras:
        with complaints.refused():
            (add_peft_folders if "peft" in loras[0] else add_files)(pipeline, loras)
    if vae_tiling:
        pipeline.vae.enable_tiling()
    latents = {}
    images = pipeline(
        [prompt] * num_images,
        negative_prompt=None if negative_prompt is None else [negative_prompt] * num_images,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        height=height,
        width=width,
        **(options or {}),
        generator=[torch.Generator("cpu").manual_seed(seed + i) for i in range(num_images)],
        callback_on_step_end=lambda _pipeline, _step, _timestep, values: latents.update(values) or {},
        callback_on_step_end_tensor_inputs=["latents"],
    ).images
    for i, image in enumerate(images):
        image.save(Path(out) / f"{name}-{i}.png")
    save_file({"latents": latents["latents"].contiguous()}, Path(out) / f"{name}.safetensors")


def main(out, jobs):
    Path(out).mkdir(parents=True, exist_ok=True)
    for job in jobs:
        run(out, **job)


if __name__ == "__main__":
    main(sys.argv[1], json.loads(sys.argv[2]))
