"""Dialogues for smollm2_dialogues.sh.

    smollm2_dialogues.py PACKAGES OUT    {train,validation,held-out}.jsonl: {"text", "label"}, a line and the reply to it

From chatterbot-corpus, English; without `coding`, whose replies are programs. Needs PyYAML.
"""

import json
import random
import sys
import zipfile
from pathlib import Path

import yaml

LEFT_OUT = {"coding"}
HELD_OUT, VALIDATION = 70, 40  # lines, each with all replies to it


def exchanges(packages):
    with zipfile.ZipFile(next(Path(packages).glob("chatterbot_corpus-*.whl"))) as package:
        for name in sorted(package.namelist()):
            if "/data/english/" in name and Path(name).stem not in LEFT_OUT:
                for lines in yaml.safe_load(package.read(name))["conversations"]:
                    lines = [" ".join(str(line).split()) for line in lines]
                    yield from zip(lines, lines[1:])


def main(packages, out):
    # One line occurs with several replies, and some pairs a hundred times.
    replies = {}
    for line, reply in sorted(set(exchanges(packages))):
        replies.setdefault(line.lower(), []).append((line, reply))
    groups = list(replies.values())
    random.Random(0).shuffle(groups)
    learnt_from = HELD_OUT + VALIDATION
    parts = {"held-out": groups[:HELD_OUT], "validation": groups[HELD_OUT:learnt_from], "train": groups[learnt_from:]}
    for name, part in parts.items():
        pairs = [pair for group in part for pair in group]
        rows = (json.dumps({"text": line, "label": reply}) + "\n" for line, reply in pairs)
        Path(out, f"{name}.jsonl").write_text("".join(rows))
        print(f"{name}: {len(pairs)} replies")


if __name__ == "__main__":
    main(*sys.argv[1:])
