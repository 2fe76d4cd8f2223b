"""Writes a pipeline folder as one checkpoint with the key names of the original Stable Diffusion code.

    single_file.py OUT.safetensors '{"model": DIR}'

model     a folder in the diffusers layout with four levels (diffusers reads no other number from such a file)
dtype     of the file, "float32"

The network is `model.diffusion_model.*`, the VAE `first_stage_model.*` (attention as 1x1 convolutions), the text encoder
`cond_stage_model.transformer.text_model.*`, or OpenCLIP's `cond_stage_model.model.*` with fused projections where the
UNet projects linearly (Stable Diffusion 2). SDXL's text encoders are `conditioner.embedders.0.transformer.text_model.*` and
`conditioner.embedders.1.model.*`, the latter's projection transposed. With "marks" the file has the tensors `v_pred` and `ztsnr`. What else such files hold is there too: position ids, the noise schedule.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection"}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
OPEN_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj"}


def unet_key(key, layers_per_block, first_attends=False):
    """`down_blocks.1.resnets.0.conv1.weight` -> `input_blocks.4.0.in_layers.2.weight`."""
    module, _, leaf = key.rpartition(".")
    if module in UNET_ENDS:
        return f"{UNET_ENDS[module]}.{leaf}"
    side, *path = key.split(".")
    if side == "mid_block":
        kind, i, *rest = path
        place = f"middle_block.{2 * int(i) if kind == 'resnets' else 1}"
    else:
        block, kind, i, *rest = path
        block, i = int(block), int(i)
        first = block * (layers_per_block + 1)
        if kind == "downsamplers":
            return f"input_blocks.{first + layers_per_block + 1}.0.op.{leaf}"
        if kind == "upsamplers":
            # Behind the resnet, and behind the attention where the block has one.
            return f"output_blocks.{first + layers_per_block}.{2 if block or first_attends else 1}.conv.{leaf}"
        place = f"input_blocks.{first + i + 1}" if side == "down_blocks" else f"output_blocks.{first + i}"
        place += ".0" if kind == "resnets" else ".1"
    if kind == "resnets":
        rest[0] = RESNET[rest[0]]
    return ".".join([place, *rest])


def vae_key(key, levels):
    """`decoder.up_blocks.0.resnets.1.conv1.weight` -> `decoder.up.3.block.1.conv1.weight`."""
    for today, original in {
        "conv_norm_out": "norm_out",
        "conv_shortcut": "nin_shortcut",
        "mid_block.attentions.0.group_norm": "mid.attn_1.norm",
        "mid_block.attentions.0.to_out.0": "mid.attn_1.proj_out",
        "mid_block.attentions.0.to_": "mid.attn_1.",
        "mid_block.resnets.0": "mid.block_1",
        "mid_block.resnets.1": "mid.block_2",
        "downsamplers.0": "downsample",
        "upsamplers.0": "upsample",
        "resnets": "block",
        "down_blocks": "down",
    }.items():
        key = key.replace(today, original)
    for block in range(levels):
        key = key.replace(f"up_blocks.{block}.", f"up.{levels - 1 - block}.")
    return key


def open_clip(weights):
    """A CLIPTextModel's weights as OpenCLIP names and fuses them."""
    renamed = {
        "positional_embedding": weights["embeddings.position_embedding.weight"],
        "token_embedding.weight": weights["embeddings.token_embedding.weight"],
        "ln_final.weight": weights["final_layer_norm.weight"],
        "ln_final.bias": weights["final_layer_norm.bias"],
    }
    for key, tensor in weights.items():
        if not key.startswith("encoder.layers."):
            continue
        _, _, layer, rest = key.split(".", 3)
        module, _, leaf = rest.rpartition(".")
        place = f"transformer.resblocks.{layer}"
        if module == "self_attn.q_proj":
            fused = [weights[f"encoder.layers.{layer}.self_attn.{which}_proj.{leaf}"] for which in "qkv"]
            renamed[f"{place}.attn.in_proj_{leaf}"] = torch.cat(fused)
        elif module in OPEN_CLIP or module.startswith("layer_norm"):
            renamed[f"{place}.{OPEN_CLIP[module]}.{leaf}"] = tensor
    return renamed


def without_prefix(text):
    return {key.removeprefix("text_model."): tensor for key, tensor in text.state_dict().items() if "position_ids" not in key}


def main(out, model, dtype="float32", marks=False):
    xl = (Path(model) / "text_encoder_2").exists()
    pipeline = StableDiffusionXLPipeline.from_pretrained(model) if xl else StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    unet, vae, text = pipeline.unet, pipeline.vae, pipeline.text_encoder
    checkpoint = {f"model.diffusion_model.{unet_key(key, unet.config.layers_per_block, xl)}": tensor for key, tensor in unet.state_dict().items()}
    for key, tensor in vae.state_dict().items():
        convolution = ".attentions." in key and ".to_" in key and key.endswith(".weight")
        tensor = tensor[:, :, None, None] if convolution else tensor
        checkpoint[f"first_stage_model.{vae_key(key, len(vae.config.block_out_channels))}"] = tensor
    weights = without_prefix(text)
    if xl:
        second = without_prefix(pipeline.text_encoder_2)
        tower = open_clip(second) | {"text_projection": second["text_projection.weight"].T, "logit_scale": torch.tensor(4.6)}
        checkpoint |= {f"conditioner.embedders.0.transformer.text_model.{key}": tensor for key, tensor in weights.items()}
        checkpoint |= {f"conditioner.embedders.1.model.{key}": tensor for key, tensor in tower.items()}
    elif unet.config.use_linear_projection:
        checkpoint |= {f"cond_stage_model.model.{key}": tensor for key, tensor in open_clip(weights).items()}
    else:
        checkpoint |= {f"cond_stage_model.transformer.text_model.{key}": tensor for key, tensor in weights.items()}
    checkpoint = {key: tensor.to(getattr(torch, dtype)).contiguous() for key, tensor in checkpoint.items()}
    if marks:
        checkpoint |= {"v_pred": torch.tensor([]), "ztsnr": torch.tensor([])}
    if not unet.config.use_linear_projection:
        checkpoint["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(77).unsqueeze(0)
    checkpoint["alphas_cumprod"] = DDPMScheduler.from_config(pipeline.scheduler.config).alphas_cumprod
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    save_file(checkpoint, out)


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
