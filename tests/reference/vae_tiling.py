"""Encodes and decodes images in tiles with diffusers' AutoencoderKL.

    vae_tiling.py OUT_FILE '{"model": DIR, "sizes": [[12, 20], [8, 30]]}'

Of each size [height, width] of the latents are written N.latents [2, 4, height, width], the images N.tiled (after
`enable_tiling`) and N.whole that they decode to, N being its place in the list, and N.pixels [2, 3, height·f, width·f]
with the moments N.moments_tiled and N.moments_whole that they encode to.
tile  the side of a tile in pixels, by default that of the configuration
"""

import json
import sys

import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file


def main(out, model, sizes, tile=None):
    vae = AutoencoderKL.from_pretrained(model, subfolder="vae", torch_dtype=torch.float32).eval()
    factor = 2 ** (len(vae.config.block_out_channels) - 1)
    if tile:
        vae.tile_sample_min_size, vae.tile_latent_min_size = tile, tile // factor
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for i, (height, width) in enumerate(sizes):
        latents = torch.randn(2, 4, height, width, generator=generator)
        pixels = torch.rand(2, 3, height * factor, width * factor, generator=generator) * 2 - 1
        tensors |= {f"{i}.latents": latents, f"{i}.pixels": pixels}
        for name, turn in (("whole", vae.disable_tiling), ("tiled", vae.enable_tiling)):
            turn()
            with torch.no_grad():
                tensors[f"{i}.{name}"] = vae.decode(latents).sample.contiguous()
                tensors[f"{i}.moments_{name}"] = vae.encode(pixels).latent_dist.parameters.contiguous()
    save_file(tensors, out)


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
