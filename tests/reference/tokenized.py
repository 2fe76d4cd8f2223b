"""Writes the ids that transformers gives texts.

    tokenized.py OUT.json FOLDER TEXTS.json

FOLDER's own folders hold tokenizers: {name: ids of each text}
"""

import json
import pathlib
import sys

from transformers import AutoTokenizer

out, folder, texts = map(pathlib.Path, sys.argv[1:])
texts = json.loads(texts.read_text(encoding="utf-8"))
tokenizers = {path.name: AutoTokenizer.from_pretrained(path) for path in folder.iterdir() if path.is_dir()}
found = {name: [tokenizer(text)["input_ids"] for text in texts] for name, tokenizer in tokenizers.items()}
out.write_text(json.dumps(found), encoding="utf-8")
