"""Writes what each network of a pipeline computes, inputs beside outputs, as one safetensors file.

    forward.py OUT.safetensors '{"model": DIR, "height": 64, "width": 48}'

model      a folder in the diffusers layout
height     of the image in pixels; width: another number, so that swapped axes show
parts      any of ["text_encoder", "vae", "unet"], by default all; large models are quicker in parts
seed       of the inputs, 0
file_variant  such as "fp16"; all is computed in float32

text_encoder.input_ids [2, 77] int64     text_encoder.output [2, 77, d]    (of the prompts in text_encoder.prompts, metadata)
vae.pixels [2, 3, H, W]  vae.mean and vae.logvar [2, 4, h, w]   vae.latents [2, 4, h, w]  vae.decoded [2, 3, H, W]
unet.latents [2, 4, h, w]  unet.timesteps [2] int64  unet.context [2, 77, d]  unet.output [2, 4, h, w]
Of SDXL also text_encoder.ids_2 [2, 77], and text_encoder.output is the context of both, text_encoder.pooled [2, p];
unet.pooled [2, p]  unet.time_ids [2, 6]  unet.pooled_gradient [2, p]
unet.target [2, 4, h, w]  unet.context_gradient [2, 77, d]  unet.latents_gradient: of mse(output, target)
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import bitsandbytes_on_the_host

bitsandbytes_on_the_host.allow()

PROMPTS = ["a photo of sks dog, running on the beach", "DSLR portrait — naïve café, 8k 😀 " + "very " * 90]


def text_encoder(model, files):
    tokenizer = CLIPTokenizer.from_pretrained(model, subfolder="tokenizer")
    network = CLIPTextModel.from_pretrained(model, subfolder="text_encoder", dtype=torch.float32, **files).eval()
    encode = lambda tokenizer: tokenizer(PROMPTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt").input_ids
    ids = encode(tokenizer)
    if not (Path(model) / "text_encoder_2").exists():
        with torch.no_grad():
            return {"input_ids": ids, "output": network(ids)[0]}
    ids_2 = encode(CLIPTokenizer.from_pretrained(model, subfolder="tokenizer_2"))
    second = CLIPTextModelWithProjection.from_pretrained(model, subfolder="text_encoder_2", dtype=torch.float32, **files).eval()
    with torch.no_grad():
        outputs = [network(ids, output_hidden_states=True), second(ids_2, output_hidden_states=True)]
    context = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
    return {"input_ids": ids, "ids_2": ids_2, "output": context, "pooled": outputs[1].text_embeds}


def vae(model, files, height, width, generator):
    network = AutoencoderKL.from_pretrained(model, subfolder="vae", torch_dtype=torch.float32, **files).eval()
    pixels = torch.rand(2, 3, height, width, generator=generator) * 2 - 1
    with torch.no_grad():
        posterior = network.encode(pixels).latent_dist
        latents = torch.randn(posterior.mean.shape, generator=generator)
        decoded = network.decode(latents).sample
    return {"pixels": pixels, "mean": posterior.mean, "logvar": posterior.logvar, "latents": latents, "decoded": decoded}


def vae_scale_factor(model):
    return 2 ** (len(AutoencoderKL.load_config(model, subfolder="vae")["block_out_channels"]) - 1)


def unet(model, files, height, width, generator):
    network = UNet2DConditionModel.from_pretrained(model, subfolder="unet", torch_dtype=torch.float32, **files).eval().requires_grad_(False)
    bitsandbytes_on_the_host.exactly(network)
    factor = vae_scale_factor(model)
    latents = torch.randn(2, 4, height // factor, width // factor, generator=generator).requires_grad_()
    context = torch.randn(2, 77, network.config.cross_attention_dim, generator=generator).requires_grad_()
    target = torch.randn(latents.shape, generator=generator)
    timesteps = torch.tensor([17, 801])
    added = None
    if network.config.addition_embed_type == "text_time":
        width = network.config.projection_class_embeddings_input_dim - 6 * network.config.addition_time_embed_dim
        pooled = torch.randn(2, width, generator=generator).requires_grad_()
        added = {"text_embeds": pooled, "time_ids": torch.tensor([[1024.0, 768, 0, 33, 512, 512], [1333, 1000, 7, 0, 128, 96]])}
    output = network(latents, timesteps, context, added_cond_kwargs=added).sample
    torch.nn.functional.mse_loss(output, target).backward()
    more = {"pooled": added["text_embeds"], "time_ids": added["time_ids"], "pooled_gradient": added["text_embeds"].grad} if added else {}
    return more | {
        "latents": latents, "timesteps": timesteps, "context": context, "output": output, "target": target,
        "latents_gradient": latents.grad, "context_gradient": context.grad,
    }  # fmt: skip


def main(out, model, height=64, width=48, parts=("text_encoder", "vae", "unet"), seed=0, file_variant=None):
    results, files = {}, {"variant": file_variant}
    for part in parts:
        generator = torch.Generator().manual_seed(seed)
        if part == "text_encoder":
            computed = text_encoder(model, files)
        else:
            computed = {"vae": vae, "unet": unet}[part](model, files, height, width, generator)
        results |= {f"{part}.{name}": tensor.detach().contiguous() for name, tensor in computed.items()}
    Path(out).parent.mkdir(parents=True, exist_ok=True)
    save_file(results, out, metadata={"text_encoder.prompts": json.dumps(PROMPTS)})


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
