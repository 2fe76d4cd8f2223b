"""What transformers makes of pairs with a T5 that lies in a folder, whose weights must all be there and no more.

    seq2seq_loss.py OUT.json '{"model": DIR, "pairs": FILE.jsonl}'

OUT  {"loss": mean of a label's token, "warnings": what `from_pretrained` finds wrong}
"""

import json
import logging
import sys

import torch
import transformers

from language_loop import batch_of, rows


def main(out, model, pairs):
    warnings = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    network, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(model, dtype=torch.float32, output_loading_info=True)
    logger.removeHandler(handler)
    logger.setLevel(level)
    warnings += [f"{name}: {keys}" for name, keys in info.items() if keys]
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    total = count = 0
    with torch.no_grad():
        for row in rows(pairs):
            batch = batch_of(tokenizer, [row], "seq2seq-lm", True, [])
            tokens = batch["labels"].numel()
            total += network.eval()(**batch).loss.item() * tokens
            count += tokens
    json.dump({"loss": total / count, "warnings": warnings}, open(out, "w"))


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
