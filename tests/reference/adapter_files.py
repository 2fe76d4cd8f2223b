"""Loads adapter files as users of these libraries do, and computes with them.

    adapter_files.py OUT_FILE '{"model": DIR, "inputs": FILE, "peft": DIR, "lora": FILE, "merged": DIR}'

model    a folder in the diffusers layout
inputs   outputs.safetensors of adapters.py, whose inputs are used
one of:
peft     a folder with unet/ and text_encoder/, for peft
lora     a file for load_lora_weights
merged   a pipeline folder to compute with instead

Writes the output of each part: unet, text_encoder. Fails if a key of the file is not used.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from adapters import compute


def main(out, model, inputs, peft=None, lora=None, merged=None):
    if (Path(model) / "text_encoder_2").exists():
        pipeline = StableDiffusionXLPipeline.from_pretrained(merged or model, torch_dtype=torch.float32, add_watermarker=False)
    else:
        pipeline = StableDiffusionPipeline.from_pretrained(merged or model, safety_checker=None, torch_dtype=torch.float32)
    networks = {part: getattr(pipeline, part) for part in ("unet", "text_encoder", "text_encoder_2") if hasattr(pipeline, part)}
    if peft:
        for part in networks:
            if not (Path(peft) / part).exists():
                continue
            networks[part] = PeftModel.from_pretrained(networks[part], Path(peft) / part).eval()
            loaded, written = get_peft_model_state_dict(networks[part]), load_file(Path(peft) / part / "adapter_model.safetensors")
            assert loaded.keys() == written.keys(), loaded.keys() ^ written.keys()
            assert all(torch.equal(loaded[key], written[key]) for key in written)
    if lora:
        pipeline.load_lora_weights(str(Path(lora).parent), weight_name=Path(lora).name)
        count = sum(".lora_A." in name or ".lora_B." in name for network in networks.values() for name, _ in network.named_parameters())
        written = sum(key.endswith((".lora_A.weight", ".lora_B.weight", ".lora_down.weight", ".lora_up.weight")) for key in load_file(lora))
        assert count == written, (count, written)
    given = load_file(inputs)
    computed = {}
    for part, network in networks.items():
        names = ["latents", "timesteps", "context", "pooled", "time_ids"] if part == "unet" else ["input_ids"]
        own = {name: given[f"{part}.{name}"] for name in names if f"{part}.{name}" in given}
        if own:
            computed[part] = compute(network, own)
    save_file(computed, out)


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
