"""CLIP tokenizer folders in every layout that models ship, 300 texts, and transformers' ids for them.

usage: clip_tokenizer.py OUT
OUT/<layout>/: a tokenizer folder; OUT/texts.json: the texts; OUT/ids.json: {layout: [ids of each text]}
"""

import gzip
import importlib.util
import json
import pathlib
import shutil
import sys

from odd_texts import odd_texts
from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"


def byte_symbols():
    """The 256 printable characters that stand for bytes, in the vocabulary's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + i) for i in range(len(others))]


def write_vocabulary(folder):
    """vocab.json and merges.txt as OpenAI's list defines them; the list comes with open-clip-torch."""
    package = importlib.util.find_spec("open_clip")
    if package is None:
        raise SystemExit("the reference venv needs open-clip-torch (pip install --no-deps open-clip-torch)")
    source = pathlib.Path(package.submodule_search_locations[0]) / "bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.open(source, "rt", encoding="utf-8").read().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    symbols = byte_symbols()
    tokens = symbols + [symbol + "</w>" for symbol in symbols] + ["".join(merge.split()) for merge in merges]
    vocabulary = {token: index for index, token in enumerate([*tokens, START, END])}
    assert len(vocabulary) == 49408
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")


def token(text, **more):
    return {"content": text, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False, **more}


def write_layouts(out):
    """The layouts of Stable Diffusion 1.5 and 2.1 on the hub, of transformers 5, and one without any configuration."""
    bare = out / "bare"
    write_vocabulary(bare)
    config = {
        "add_prefix_space": False,
        "bos_token": token(START, __type="AddedToken"),
        "eos_token": token(END, __type="AddedToken"),
        "unk_token": token(END, __type="AddedToken"),
        "pad_token": END,
        "errors": "replace",
        "model_max_length": 77,
        "tokenizer_class": "CLIPTokenizer",
    }
    special = {"bos_token": token(START), "eos_token": token(END), "unk_token": token(END), "pad_token": END}
    for layout, pad in (("sd1", END), ("sd2", "!")):
        shutil.copytree(bare, out / layout)
        (out / layout / "tokenizer_config.json").write_text(json.dumps(config))
        (out / layout / "special_tokens_map.json").write_text(json.dumps({**special, "pad_token": pad}))
        CLIPTokenizer.from_pretrained(out / layout).save_pretrained(out / f"{layout}_saved")
    # Without a configuration transformers pads to no length at all.
    (bare / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 77}))


def main(out):
    write_layouts(out)
    samples = odd_texts(START, END, 300)
    assert len(samples) == 300
    ids = {}
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        encoded = tokenizer(samples, padding="max_length", truncation=True, max_length=tokenizer.model_max_length)
        ids[folder.name] = encoded["input_ids"]
    (out / "texts.json").write_text(json.dumps(samples))
    (out / "ids.json").write_text(json.dumps(ids))


main(pathlib.Path(sys.argv[1]))
