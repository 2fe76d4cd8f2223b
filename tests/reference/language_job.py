"""A small job for `lorabooth train llm`: a model of random weights with a tokenizer, and records.

    language_job.py OUT '{"class": "GPT2LMHeadModel", "config": {...}}'

config  arguments of the configuration, but for the vocabulary and the special ids, which are the tokenizer's
rows    of the table of embeddings, where it is to have more than the tokenizer needs
words   of each text, 3 to 9 of them where not given
dtype   "float32", "float16" or "bfloat16", of the model's files
OUT/model                                    model and tokenizer
OUT/train.jsonl, OUT/validation.jsonl        {"text", "label"}: texts of words, and a word or a class
"""

import json
import random
import sys
from pathlib import Path

import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

from language_models import model_of, save

WORDS = "red green blue small large old new house tree bird river stone cloud bread music window garden winter summer".split()


def records(count, generator, length=None):
    def record():
        words = generator.choices(WORDS, k=length) if length else generator.sample(WORDS, generator.randint(3, 9))
        return {"text": " ".join(words), "label": "long" if len(words) > 6 and not length else generator.choice(["short", "tiny"])}
    return [record() for _ in range(count)]


def tokenizer_of(texts):
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["<pad>", "</s>", "<unk>"])
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )


def main(out, config, rows=0, words=None, **options):
    out = Path(out)
    generator = random.Random(0)
    train, validation = records(24, generator, words), records(10, generator, words)
    tokenizer = tokenizer_of([f"{record['text']} {record['label']}" for record in train + validation])
    special = {"vocab_size": max(rows, len(tokenizer)), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 1}
    network = model_of(options["class"], config | special)
    save(out / "model", network, options.get("dtype", "float32"))
    tokenizer.save_pretrained(out / "model")
    for name, rows in (("train", train), ("validation", validation)):
        (out / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
