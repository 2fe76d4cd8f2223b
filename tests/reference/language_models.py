"""Makes a language model of random weights, as transformers saves it.

    language_models.py OUT '{"class": "GPT2LMHeadModel", "config": {...}}'

class           a transformers class; config: the arguments of its configuration
seed            of the weights, 0
dtype           "float32", "float16" or "bfloat16", of the files
max_shard_size  such as "20KB": weights in several files with an index; none: one file
own_head        lm_head has numbers of its own where the class ties it to the embeddings
keys            "whole": as the class saves them; "base": without the prefix of the base model, as older repositories have them;
                "hub": that, with the buffers that GPT-2's and BERT's repositories have, and norms by TensorFlow's names

Every bias and norm is far from 0 and 1, as in models.py.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

from models import randomize


def model_of(class_name, config, seed=0):
    model_class = getattr(transformers, class_name)
    model = model_class(model_class.config_class(**config))
    return randomize(model, torch.Generator().manual_seed(seed)).eval()


def _respell(path, prefix, keys):
    tensors = {}
    for key, tensor in load_file(path).items():
        key = key.removeprefix(prefix + ".")
        if keys == "hub" and "LayerNorm" in key:
            key = key.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        tensors[key] = tensor
    if keys == "hub":
        for key in [key for key in tensors if key.endswith("attn.c_attn.weight")]:
            layer = key.removesuffix("c_attn.weight")
            tensors[layer + "bias"] = torch.ones(1, 1, 8, 8, dtype=torch.uint8).tril()
            tensors[layer + "masked_bias"] = torch.tensor(-1e4)
        if "embeddings.word_embeddings.weight" in tensors:
            tensors["embeddings.position_ids"] = torch.arange(8).unsqueeze(0)
    save_file(tensors, path, metadata={"format": "pt"})


def save(folder, model, dtype="float32", max_shard_size=None, own_head=False, keys="whole"):
    folder = Path(folder)
    sharding = {"max_shard_size": max_shard_size} if max_shard_size else {}
    model.to(getattr(torch, dtype)).save_pretrained(folder, **sharding)
    if own_head:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        generator = torch.Generator().manual_seed(1)
        shape = (model.config.vocab_size, model.get_input_embeddings().weight.shape[1])
        tensors["lm_head.weight"] = torch.randn(shape, generator=generator) / shape[1] ** 0.5
        save_file(tensors, path, metadata={"format": "pt"})
    if keys != "whole":
        _respell(folder / "model.safetensors", model.base_model_prefix, keys)
    return folder


if __name__ == "__main__":
    options = json.loads(sys.argv[2])
    made = model_of(options.pop("class"), options.pop("config"), options.pop("seed", 0))
    save(sys.argv[1], made, **options)
