"""A small language model of random weights for a launch example, with a tokenizer of the words in the example's own records.

    launch_model.py OUT '{"class": "OPTForCausalLM", "config": {...}, "records": FILE.jsonl}'

config   arguments of the configuration, but for the vocabulary and the special ids, which are the tokenizer's
"""

import json
import sys
from pathlib import Path

from language_job import tokenizer_of
from language_models import model_of, save


def main(out, config, records, **options):
    rows = [json.loads(line) for line in Path(records).read_text().splitlines()]
    tokenizer = tokenizer_of([text for row in rows for text in row.values()])
    special = {"vocab_size": len(tokenizer), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    save(out, model_of(options["class"], config | special))
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
