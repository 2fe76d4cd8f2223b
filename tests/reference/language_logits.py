"""What peft computes with an adapter that lies in a folder, on the first records of a job.

    language_logits.py OUT.safetensors '{"job": DIR, "class": "GPT2LMHeadModel", "task": "causal-lm", "adapter": DIR, "label": true}'

job, label  of language_loop.py
OUT         input_ids, attention_mask [b, t], labels; logits as the model gives them
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from safetensors.torch import save_file

from language_loop import batch_of, rows


def main(out, job, task, adapter, label=False, **options):
    job = Path(job)
    classes = sorted({row["label"] for row in rows(job / "train.jsonl")})
    tokenizer = transformers.AutoTokenizer.from_pretrained(job / "model")
    base = getattr(transformers, options["class"]).from_pretrained(job / "model", dtype=torch.float32)
    network = PeftModel.from_pretrained(base, adapter).eval()
    inputs = batch_of(tokenizer, rows(job / "validation.jsonl")[:4], task, label, classes)
    with torch.no_grad():
        logits = network(**inputs).logits
    save_file({**inputs, "logits": logits.contiguous()}, out)


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
