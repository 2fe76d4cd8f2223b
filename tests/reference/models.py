"""Makes a Stable Diffusion pipeline of random weights in the diffusers layout.

    models.py OUT '{"variant": "tiny"}'

variant         one of configs.py
seed            of the weights, 0
dtype           "float32" or "float16", of the files
max_shard_size  such as "200KB": weights in several files with an index; none: one file
file_variant    such as "fp16": diffusion_pytorch_model.fp16.safetensors
spelling        "today": as these libraries write; "hub": as the Stable Diffusion repositories on the hub have it (short
                configurations, `query/key/value/proj_attn` in the VAE, `text_model.` in CLIP)
tokenizer       "hub": vocab.json and merges.txt; "today": tokenizer.json as transformers 5 writes it
prediction_type "epsilon" or "v_prediction"; by default the variant's own

Every bias and norm is far from 0 and 1, and linear and convolution weights keep activations near 1: what a reader
forgets or scales wrongly shows in the output.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, PNDMScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import clip_vocabulary
import configs

HUB_CONFIG_KEYS = {
    "unet": """_class_name act_fn attention_head_dim block_out_channels center_input_sample cross_attention_dim down_block_types
        downsample_padding flip_sin_to_cos freq_shift in_channels layers_per_block mid_block_scale_factor norm_eps norm_num_groups
        out_channels sample_size up_block_types use_linear_projection upcast_attention""",
    "vae": """_class_name act_fn block_out_channels down_block_types in_channels latent_channels layers_per_block norm_num_groups
        out_channels sample_size up_block_types""",
}
HUB_VAE_NAMES = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


def randomize(model, generator, dtype=torch.float32):
    """Gives the model new parameters, by what they are. They are drawn in float32, one at a time: the whole is never in memory in it."""
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            drawn = torch.empty(parameter.shape).normal_(generator=generator)
            if name == "bias":
                drawn.mul_(0.1)
            elif isinstance(module, torch.nn.Embedding):
                drawn.mul_(0.5)
            elif drawn.ndim == 1:
                drawn.mul_(0.2).add_(1)
            else:
                drawn.div_(math.sqrt(drawn[0].numel()))
            if parameter.is_meta:
                setattr(module, name, torch.nn.Parameter(drawn.to(dtype)))
            else:  # which keeps tied parameters tied
                parameter.data = drawn.to(dtype)
    return model


def empty(model_class, **config):
    """A diffusers model without storage, whose parameters `randomize` makes."""
    with torch.device("meta"):
        return model_class(**config)


def pipeline(variant, seed=0, prediction_type=None, dtype="float32"):
    """The pipeline in memory; its tokenizer and scheduler are written by `save`."""
    generator, dtype = torch.Generator().manual_seed(seed), getattr(torch, dtype)
    scheduler = dict(configs.scheduler(variant))
    if prediction_type:
        scheduler["prediction_type"] = prediction_type
    scheduler_class = {"DDIMScheduler": DDIMScheduler, "PNDMScheduler": PNDMScheduler, "EulerDiscreteScheduler": EulerDiscreteScheduler}[scheduler["_class_name"]]
    if configs.is_xl(variant):
        return StableDiffusionXLPipeline(
            text_encoder=randomize(CLIPTextModel(CLIPTextConfig(**configs.text_encoder(variant))), generator, dtype),
            text_encoder_2=randomize(CLIPTextModelWithProjection(CLIPTextConfig(**configs.text_encoder_2(variant))), generator, dtype),
            vae=randomize(empty(AutoencoderKL, **configs.vae(variant)), generator, dtype),
            unet=randomize(empty(UNet2DConditionModel, **configs.unet(variant)), generator, dtype),
            tokenizer=CLIPTokenizer(pad_token="<|endoftext|>"),
            tokenizer_2=CLIPTokenizer(pad_token="!"),
            scheduler=scheduler_class.from_config(scheduler),
            add_watermarker=False,
        )
    return StableDiffusionPipeline(
        text_encoder=randomize(CLIPTextModel(CLIPTextConfig(**configs.text_encoder(variant))), generator, dtype),
        vae=randomize(empty(AutoencoderKL, **configs.vae(variant)), generator, dtype),
        unet=randomize(empty(UNet2DConditionModel, **configs.unet(variant)), generator, dtype),
        tokenizer=CLIPTokenizer(pad_token="!" if configs.is_v2(variant) else "<|endoftext|>"),
        scheduler=scheduler_class.from_config(scheduler),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _spell_as_on_the_hub(folder):
    for part, keys in HUB_CONFIG_KEYS.items():
        path = folder / part / "config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps({key: config[key] for key in keys.split() if key in config}, indent=2))
    for path in (folder / "vae").glob("*.safetensors"):
        renamed = {}
        for key, tensor in load_file(path).items():
            if ".attentions." in key:
                for today, hub in HUB_VAE_NAMES.items():
                    key = key.replace(f".{today}.", f".{hub}.")
            renamed[key] = tensor
        save_file(renamed, path, metadata={"format": "pt"})
    for path in (folder / "text_encoder").glob("*.safetensors"):
        renamed = {"text_model." + key: tensor for key, tensor in load_file(path).items()}
        renamed["text_model.embeddings.position_ids"] = torch.arange(77).unsqueeze(0)
        save_file(renamed, path, metadata={"format": "pt"})


def save(folder, variant, seed=0, dtype="float32", max_shard_size=None, file_variant=None, spelling="today", tokenizer="hub", prediction_type=None):
    assert variant in configs.VARIANTS and spelling in ("today", "hub") and tokenizer in ("today", "hub")
    assert not (spelling == "hub" and max_shard_size), "the repositories on the hub are not sharded"
    folder = Path(folder)
    made = pipeline(variant, seed, prediction_type, dtype)
    sharding = {"max_shard_size": max_shard_size} if max_shard_size else {}
    made.save_pretrained(folder, variant=file_variant, **sharding)

    scheduler = dict(configs.scheduler(variant), **({"prediction_type": prediction_type} if prediction_type else {}))
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2))
    shutil.rmtree(folder / "tokenizer")
    clip_vocabulary.write(folder / "tokenizer", "!" if configs.is_v2(variant) else "<|endoftext|>")
    if configs.is_xl(variant):
        shutil.rmtree(folder / "tokenizer_2")
        clip_vocabulary.write(folder / "tokenizer_2", "!")
    if tokenizer == "today":
        read = CLIPTokenizer.from_pretrained(folder / "tokenizer")
        shutil.rmtree(folder / "tokenizer")
        read.save_pretrained(folder / "tokenizer")
    if spelling == "hub":
        _spell_as_on_the_hub(folder)
    return folder


if __name__ == "__main__":
    save(sys.argv[1], **json.loads(sys.argv[2]))
