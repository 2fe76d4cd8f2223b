"""Writes a model of the hub, or a folder, whose weights are pickles anew as safetensors, with its tokenizer as tokenizer.json.

    as_safetensors.py facebook/opt-6.7b models/opt-6.7b

Once, in a Python with torch and transformers (and sentencepiece, for T5); it needs as much memory as the weights have.
"""

import sys

import transformers

source, folder = sys.argv[1:]
architecture = transformers.AutoConfig.from_pretrained(source).architectures[0]
getattr(transformers, architecture).from_pretrained(source, dtype="auto").save_pretrained(folder)
transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)
