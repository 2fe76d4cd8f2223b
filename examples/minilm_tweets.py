"""Tweets for minilm_tweets.sh, and what a linear probe makes of them.

    minilm_tweets.py records PACKAGES OUT    train.jsonl, validation.jsonl and held-out.jsonl: {"text", "label"}
    minilm_tweets.py probe MODEL OUT         accuracy on the held-out tweets (torch and transformers)

The tweets are those that VADER was measured with (Hutto and Gilbert 2014), each rated by twenty people from -4 to 4.
"""

import html
import io
import json
import random
import sys
import tarfile
import zipfile
from pathlib import Path

CLASSES = ["complaint", "no complaint"]
# As far from 0 as the paper has it; what lies between says neither.
NEUTRAL = 0.5
HELD_OUT, VALIDATION = 200, 100  # of each class


def rated_tweets(packages):
    with zipfile.ZipFile(next(Path(packages).glob("vaderSentiment-0.5.zip"))) as package:
        inner = next(name for name in package.namelist() if name.endswith("hutto_ICWSM_2014.tar.gz"))
        with tarfile.open(fileobj=io.BytesIO(package.read(inner))) as archive:
            lines = archive.extractfile("hutto_ICWSM_2014/tweets_GroundTruth.txt").read().decode().splitlines()
    for line in lines:
        _, rating, text = line.split("\t", 2)
        yield html.unescape(text).strip(), float(rating)


def write_records(packages, out):
    by_class = {name: [] for name in CLASSES}
    for text, rating in sorted(set(rated_tweets(packages))):
        if abs(rating) > NEUTRAL:
            by_class[CLASSES[rating > 0]].append(text)
    generator, count = random.Random(0), min(map(len, by_class.values()))
    for texts in by_class.values():
        generator.shuffle(texts)
    parts = {"held-out": slice(0, HELD_OUT), "validation": slice(HELD_OUT, HELD_OUT + VALIDATION)}
    for name, part in (parts | {"train": slice(HELD_OUT + VALIDATION, count)}).items():
        rows = [{"text": text, "label": label} for label, texts in by_class.items() for text in texts[part]]
        generator.shuffle(rows)
        Path(out, f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{name}: {len(rows)} tweets, half of them complaints")


def probe(model, out):
    """Logistic regression on the mean of the frozen model's last hidden states."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    network = transformers.AutoModel.from_pretrained(model).eval()

    def embedded(name):
        rows = [json.loads(line) for line in Path(out, f"{name}.jsonl").read_text().splitlines()]
        embeddings = []
        with torch.no_grad():
            for start in range(0, len(rows), 32):
                texts = [row["text"] for row in rows[start : start + 32]]
                inputs = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
                mask = inputs["attention_mask"].unsqueeze(-1)
                embeddings.append((network(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1))
        xs = torch.nn.functional.normalize(torch.cat(embeddings))
        return xs, torch.tensor([CLASSES.index(row["label"]) for row in rows])

    (xs, ys), (held_xs, held_ys) = embedded("train"), embedded("held-out")
    linear = torch.nn.Linear(xs.shape[1], len(CLASSES))
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        # scikit-learn's default strength (C = 1): half the squared norm, over all the records.
        loss = torch.nn.functional.cross_entropy(linear(xs), ys) + linear.weight.square().sum() / 2 / len(xs)
        loss.backward()
        return loss

    optimizer.step(closure)
    right = (linear(held_xs).argmax(-1) == held_ys).float().mean().item()
    print(f"linear probe: {right:.1%} of {len(held_ys)} held-out tweets")


if __name__ == "__main__":
    {"records": write_records, "probe": probe}[sys.argv[1]](*sys.argv[2:])
