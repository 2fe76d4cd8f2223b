"""A pipeline of Stable Diffusion XL whose networks bitsandbytes has quantised, as diffusers and transformers save them.

    four_bit_pipeline.py OUT '{"model": DIR, "parts": ["unet"]}'

parts  of it that are in 4 bits: "unet", "text_encoder", "text_encoder_2"
quant_type  "nf4"
"""

import json
import shutil
import sys
from pathlib import Path

import diffusers
import torch
import transformers

import bitsandbytes_on_the_host


def main(out, model, parts, quant_type="nf4"):
    bitsandbytes_on_the_host.allow()
    shutil.copytree(model, out)
    for part in parts:
        library = diffusers if part == "unet" else transformers
        kind = {"unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"}[part]
        how = library.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=quant_type, bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32)
        options = {"torch_dtype": torch.float32} if part == "unet" else {"dtype": torch.float32}
        network = getattr(library, kind).from_pretrained(model, subfolder=part, quantization_config=how, device_map="cpu", **options)
        shutil.rmtree(Path(out) / part)
        network.save_pretrained(Path(out) / part)


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
