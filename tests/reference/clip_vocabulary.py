"""CLIP's tokenizer files, from the BPE table that comes with open_clip."""

import gzip
import importlib.util
import json
from pathlib import Path


def _printable_bytes():
    """The character that stands for each byte, in the order of CLIP's vocabulary (GPT-2's table)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return [chr(byte) for byte in shown] + [chr(256 + i) for i in range(len(hidden))]


def vocabulary():
    """(token -> id, merges): 49,408 tokens and 48,894 merges."""
    folder = Path(importlib.util.find_spec("open_clip").submodule_search_locations[0])
    lines = gzip.open(folder / "bpe_simple_vocab_16e6.txt.gz", "rt", encoding="utf-8").read().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    letters = _printable_bytes()
    tokens = letters + [letter + "</w>" for letter in letters] + ["".join(merge.split()) for merge in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}, merges


def write(folder, pad_token="<|endoftext|>"):
    """The files of the hub's Stable Diffusion repositories: vocab.json, merges.txt and two configurations."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    vocab, merges = vocabulary()
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    special = dict(bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>", pad_token=pad_token)
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=2))
    config = special | dict(tokenizer_class="CLIPTokenizer", model_max_length=77, add_prefix_space=False, do_lower_case=True, errors="replace")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
