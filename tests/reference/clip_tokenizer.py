"""CLIP tokenizer folders in every layout that models ship, 300 texts, and transformers' ids for them.

usage: clip_tokenizer.py OUT
OUT/<layout>/: a tokenizer folder; OUT/texts.json: the texts; OUT/ids.json: {layout: [ids of each text]}
"""

import gzip
import importlib.util
import json
import pathlib
import random
import shutil
import sys

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


def texts():
    fixed = [
        "", " ", "a photo of sks dog", "A PHOTO of SkS Dog", "a photo of sks dog!", "wow!!! great!", "!", "!!", "a!b",
        "it's we're I'm they'll you'd I've don't 'S 'LL ''s", "rock'n'roll", "café crème", "cafe\u0301", "Ångström Å",
        "naïve façade", "ＦＵＬＬＷＩＤＴＨ", "ﬁne ﬂuﬀ", "İstanbul ıstanbul", "STRASSE ẞ ß", "ΣΊΣΥΦΟΣ ς", "ǅ ǆ",
        "🐶", "a 🐶🐕‍🦺 dog", "👩‍👩‍👧‍👦 family", "🇯🇵🇫🇷", "❤️ ♥ ☺", "👍🏽", "日本語のテキスト", "一只狗的照片", "개 사진",
        "สุนัข", "हिन्दी पाठ", "العربية نص", "שָׁלוֹם עולם", "مرحبا world שלום", "\u202eright to left\u202c", "Привет, мир",
        "1234567890", "3.14159", "v2.1-768", "१२३ ٣٤٥ ½ ² Ⅷ", "a\tb\nc\r\nd", "  many   spaces  ", "nbsp\u00a0here",
        "\u3000wide space", "zero\u200bwidth\u200djoiner", "\ufeffbom", "null\x00byte", "\x01\x02\x1b[31m", "\x85next",
        START, END, f"{START}a{END}", f"a photo {END} of a dog", "<|STARTOFTEXT|> loud", "<|EndOfText|>", f"x{START}y",
        "<|startoftext|", "|endoftext|>", "<|pad|>", "(masterpiece:1.2), [ugly], {a|b}", "a_b-c/d\\e", "email@example.com",
        "https://example.com/?q=1&r=2#x", "C++ & C# <b>html</b> &amp; &#39;", "$5 €10 £20 ¥30 %", "\"quoted\" ‘curly’ “double”",
        "… — – ·", "supercalifragilisticexpialidocious", "pneumonoultramicroscopicsilicovolcanoconiosis", "x" * 300,
        "dog " * 200, "a photo of a dog, " * 30, "🐶" * 100, "犬" * 200, "word " * 74 + "end", "word " * 75, "word " * 76,
        "\ud7ff", "\U0010ffff", "\ue000 private", "a\u0300\u0301\u0302", "q\u0323\u0307", "각 각", "K Å Ω",
    ]
    pieces = [
        "dog", "Photo", "SKS", "é", "e\u0301", "ß", "İ", "🐶", "👩‍🚀", "犬", "の", "עב", "عر", "'s", "'RE", "!", "!!", ",", "…",
        "12", "٣", "\t", "\n", "\u00a0", "\u200b", "\x07", START, END, "<|", "|>", "ﬃ", "Ｚ", "_", "-", "x" * 20, "ing", "The",
    ]
    draw = random.Random(0)
    drawn = ["".join(draw.choice(pieces) + draw.choice(["", " ", " "]) for _ in range(draw.randint(1, 60)))
             for _ in range(300 - len(fixed))]
    return fixed + drawn


def main(out):
    write_layouts(out)
    samples = texts()
    assert len(samples) == 300
    ids = {}
    for folder in sorted(path for path in out.iterdir() if path.is_dir()):
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        encoded = tokenizer(samples, padding="max_length", truncation=True, max_length=tokenizer.model_max_length)
        ids[folder.name] = encoded["input_ids"]
    (out / "texts.json").write_text(json.dumps(samples))
    (out / "ids.json").write_text(json.dumps(ids))


main(pathlib.Path(sys.argv[1]))
