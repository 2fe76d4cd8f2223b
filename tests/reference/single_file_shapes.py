"""Writes what a single-file checkpoint of a variant would hold, without its numbers, which may be gigabytes.

    single_file_shapes.py OUT '{"variant": "sd15"}'

OUT/shapes.json              {"original": {key: shape}, "unet": {our key: shape}, "vae": ..., "text_encoder": ...}
OUT/PART/config.json         and scheduler/scheduler_config.json: the configurations to be read from those shapes
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import configs
from single_file import open_clip, unet_key, vae_key


def main(out, variant):
    out = Path(out)
    with torch.device("meta"):
        unet = UNet2DConditionModel(**configs.unet(variant))
        vae = AutoencoderKL(**configs.vae(variant))
        text = CLIPTextModel(CLIPTextConfig(**configs.text_encoder(variant)))
    unet.save_config(out / "unet")
    vae.save_config(out / "vae")
    text.config.save_pretrained(out / "text_encoder")
    (out / "scheduler").mkdir()
    (out / "scheduler" / "scheduler_config.json").write_text(json.dumps(configs.scheduler(variant)))

    ours = {"unet": unet.state_dict(), "vae": vae.state_dict(), "text_encoder": text.state_dict()}
    ours["text_encoder"] = {key.removeprefix("text_model."): tensor for key, tensor in ours["text_encoder"].items() if "position_ids" not in key}
    original = {f"model.diffusion_model.{unet_key(key, unet.config.layers_per_block)}": tensor for key, tensor in ours["unet"].items()}
    for key, tensor in ours["vae"].items():
        convolution = ".attentions." in key and ".to_" in key and key.endswith(".weight")
        original[f"first_stage_model.{vae_key(key, len(vae.config.block_out_channels))}"] = tensor[:, :, None, None] if convolution else tensor
    if configs.is_v2(variant):
        # The original keeps OpenCLIP's last layer, which Stable Diffusion 2 does not use, its projection and its temperature.
        tower = open_clip(ours["text_encoder"])
        last = text.config.num_hidden_layers
        tower |= {key.replace(f"resblocks.{last - 1}.", f"resblocks.{last}."): tensor for key, tensor in tower.items() if f"resblocks.{last - 1}." in key}
        width = text.config.hidden_size
        tower |= {"text_projection": torch.empty(width, width, device="meta"), "logit_scale": torch.empty((), device="meta")}
        original |= {f"cond_stage_model.model.{key}": tensor for key, tensor in tower.items()}
    else:
        original |= {f"cond_stage_model.transformer.text_model.{key}": tensor for key, tensor in ours["text_encoder"].items()}
    original["model_ema.diffusion_modelinput_blocks00weight"] = original["model.diffusion_model.input_blocks.0.0.weight"]
    shapes = {name: {key: list(tensor.shape) for key, tensor in part.items()} for name, part in ours.items()}
    shapes["original"] = {key: list(tensor.shape) for key, tensor in original.items()}
    (out / "shapes.json").write_text(json.dumps(shapes))


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
