"""Models of published sizes without numbers: a file of weights is a header and a hole, which reads as zeros and takes no disk.

    hollow_models.py OUT '{"variant": "sd15"}'                     OUT: a pipeline of configs.py
    hollow_models.py OUT '{"class": "GPT2LMHeadModel", "config": {...}, "rows": 50257, "words": 63}'
                                                                   OUT/model, OUT/train.jsonl as of language_job.py

Files are in float16.
"""

import json
import math
import shutil
import sys
from pathlib import Path

import torch
import transformers
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

import clip_vocabulary
import configs
import language_job
import models
from language_models import model_of


def write(folder, network, file):
    """The configuration of a network on the device "meta", and its weights as a hole. Weights that are tied stand in it once."""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in network.named_parameters():
        end = offset + 2 * math.prod(tensor.shape)
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / file, "wb") as out:
        out.write(len(text).to_bytes(8, "little") + text)
        out.truncate(8 + len(text) + offset)
    if hasattr(network, "save_config"):
        network.save_config(folder)
    else:
        network.config.architectures = [type(network).__name__]
        network.config.save_pretrained(folder)


def pipeline(out, variant):
    """The folder of the pipeline `tiny`, with other networks in it."""
    models.save(out, "tiny")
    for part in ("unet", "vae", "text_encoder"):
        shutil.rmtree(out / part)
    shutil.rmtree(out / "tokenizer")
    clip_vocabulary.write(out / "tokenizer", "!" if configs.is_v2(variant) else "<|endoftext|>")
    (out / "scheduler" / "scheduler_config.json").write_text(json.dumps(configs.scheduler(variant)))
    with torch.device("meta"):
        unet, vae = UNet2DConditionModel(**configs.unet(variant)), AutoencoderKL(**configs.vae(variant))
        text_encoder = CLIPTextModel(CLIPTextConfig(**configs.text_encoder(variant)))
    write(out / "unet", unet, "diffusion_pytorch_model.safetensors")
    write(out / "vae", vae, "diffusion_pytorch_model.safetensors")
    write(out / "text_encoder", text_encoder, "model.safetensors")


def language(out, config, rows, words=None, **options):
    """The job of a small model, with a large one in its place."""
    small = {"vocab_size": rows}
    language_job.main(out, {**config, **options["small"]}, 0, words, **{"class": options["class"]})
    read = json.loads((out / "model" / "config.json").read_text())
    special = {name: read[name] for name in ("pad_token_id", "eos_token_id", "bos_token_id") if name in read}
    with torch.device("meta"):
        network = model_of(options["class"], config | special | small)
    write(out / "model", network, "model.safetensors")


def main(out, **options):
    if "variant" in options:
        pipeline(Path(out), **options)
    else:
        language(Path(out), **options)


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
