"""Decodes latents in tiles with diffusers' AutoencoderKL.

    vae_tiling.py OUT_FILE '{"model": DIR, "sizes": [[12, 20], [8, 30]]}'

Of each size [height, width] of the latents are written N.latents [2, 4, height, width], and the images N.tiled (after
`enable_tiling`) and N.whole, N being its place in the list.
"""

import json
import sys

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file


def main(out, model, sizes):
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae", torch_dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for i, (height, width) in enumerate(sizes):
        latents = torch.randn(2, 4, height, width, generator=generator)
        tensors[f"{i}.latents"] = latents
        with torch.no_grad():
            vae.disable_tiling()
            tensors[f"{i}.whole"] = vae.decode(latents).sample.contiguous()
            vae.enable_tiling()
            tensors[f"{i}.tiled"] = vae.decode(latents).sample.contiguous()
    save_file(tensors, out)


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
