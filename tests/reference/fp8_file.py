"""Writes a checkpoint with its UNet's matrices in fp8, and the same numbers in the dtype of before.

    fp8_file.py OUT.safetensors '{"file": FILE.safetensors, "half": OUT.safetensors}'

start  of the names of tensors that are written so, "model.diffusion_model."
"""

import json
import sys

import torch
from safetensors.torch import load_file, save_file


def main(out, file, half, start="model.diffusion_model."):
    codes, numbers = {}, {}
    for i, (key, tensor) in enumerate(load_file(file).items()):
        is_small = key.startswith(start) and tensor.ndim > 1
        kind = torch.float8_e5m2 if i % 2 else torch.float8_e4m3fn
        codes[key] = tensor.to(kind) if is_small else tensor
        numbers[key] = codes[key].to(tensor.dtype)
    save_file(codes, out)
    save_file(numbers, half)


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
