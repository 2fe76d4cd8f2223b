#!/usr/bin/env python3
"""Prepares the pictures that the demo model is trained on: cut-outs (RGBA PNG) and a JSONL of what each shows.

    prepare_corpus.py OUTPUT                      Microsoft's Fluent emoji, from their npm packages (needs `npm`)
    prepare_corpus.py OUTPUT --cutouts FOLDER     your own pictures with a transparent background

Writes into OUTPUT:
    cutouts/*.png       square, of --size pixels, the object filling it
    concepts.jsonl      {"file_name", "text"} of the pictures that get captions
    all.jsonl           the same of all pictures, for the VAE
    words.txt           texts that the tokenizer is trained on
    LICENSE             where the pictures are from and their licence

Of your own pictures, the caption is a text file of the same name beside it, or else the file's name.
Needs Python 3.9 and Pillow.
"""

import argparse
import json
import pathlib
import subprocess
import tarfile
import tempfile

from PIL import Image

IMAGES = "@lobehub/fluent-emoji-3d@1.1.0"
NAMES = "unicode-emoji-json@0.9.0"
TAGS = "emojibase-data@17.0.0"
GROUPS = {"Animals & Nature", "Food & Drink", "Travel & Places", "Activities", "Objects"}
# Subjects of DreamBooth later on: the model must not have seen them, nor anything that looks like them.
HELD_OUT = {"penguin", "black bird", "wolf"}
# Nouns without "a".
PLURAL = {"grapes", "cherries", "french fries", "scissors", "glasses"}
MASS = {"corn", "broccoli", "cheese"}
COLOURS = "red orange yellow green blue purple pink white gray black".split()
NOTICE = """The pictures are Fluent emoji (3D) by Microsoft, https://github.com/microsoft/fluentui-emoji, from the npm package
@lobehub/fluent-emoji-3d, cropped and scaled.

MIT License

Copyright (c) Microsoft Corporation.

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation
files (the "Software"), to deal in the Software without restriction, including without limitation the rights to use, copy,
modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the
Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the
Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE
WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR
COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR
OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.
"""


def with_article(noun):
    if noun in PLURAL or noun in MASS:
        return noun
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def npm_package(spec, folder):
    """The files of an npm package."""
    done = subprocess.run(["npm", "pack", "--silent", spec], cwd=folder, check=True, capture_output=True, text=True)
    archive = folder / done.stdout.split()[-1]
    unpacked = archive.with_suffix("")
    with tarfile.open(archive) as tar:
        tar.extractall(unpacked, filter="data")
    return unpacked / "package"


def code_points(emoji):
    """An emoji's name among the pictures; the variation selector U+FE0F is in some of them only."""
    return "-".join(f"{ord(c):x}" for c in emoji if c != "\ufe0f")


def read_concepts():
    """Unicode name -> noun."""
    lines = (pathlib.Path(__file__).parent / "concepts.txt").read_text().splitlines()
    pairs = (line.partition("=") for line in lines if line.strip() and not line.startswith("#"))
    return {name.strip(): (noun.strip() or name.strip()) for name, _, noun in pairs}


def fluent_emoji(folder):
    """(picture, Unicode name, noun or None) of every object, and the texts for the tokenizer."""
    pictures = npm_package(IMAGES, folder) / "assets"
    by_code = {path.stem.replace("-fe0f", ""): path for path in sorted(pictures.glob("*.webp"))}
    emoji = json.loads((npm_package(NAMES, folder) / "data-by-emoji.json").read_text())
    concepts = read_concepts()
    found = []
    for character, entry in emoji.items():
        path = by_code.get(code_points(character))
        noun = concepts.pop(entry["name"], None)
        if path and entry["name"] not in HELD_OUT and (noun or entry["group"] in GROUPS):
            found.append((path, entry["name"], noun))
    if concepts:
        raise SystemExit(f"no picture of: {', '.join(concepts)}")
    tags = json.loads((npm_package(TAGS, folder) / "en/data.json").read_text())
    texts = [entry["label"] for entry in tags] + [" ".join(entry.get("tags", [])) for entry in tags]
    return found, texts


def own_cutouts(folder):
    """(picture, file name, caption) of every picture in `folder`, and the texts for the tokenizer."""
    found = []
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in {".png", ".webp"}):
        caption = path.with_suffix(".txt")
        noun = caption.read_text().strip() if caption.exists() else path.stem.replace("_", " ").replace("-", " ")
        found.append((path, path.stem, noun))
    return found, [noun for _, _, noun in found]


def cutout(path, size):
    """The object of a picture, in the middle of a square that it fills."""
    with Image.open(path) as picture:
        picture = picture.convert("RGBA")
    box = picture.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox()
    if box is None:
        return None
    picture = picture.crop(box)
    side = max(picture.size)
    square = Image.new("RGBA", (side, side))
    square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
    return square.resize((size, size), Image.Resampling.LANCZOS)


def training_words(texts, nouns):
    """The texts, and captions as the training writes them."""
    lines = [text.lower() for text in texts]
    lines += [f"a photo of {noun} on a {colour} background" for noun in nouns for colour in COLOURS]
    return lines


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("output", type=pathlib.Path)
    arguments.add_argument("--cutouts", type=pathlib.Path, help="a folder of your own pictures")
    arguments.add_argument("--size", type=int, default=128, help="pixels along a side (128)")
    args = arguments.parse_args()

    (args.output / "cutouts").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        if args.cutouts:
            found, texts = own_cutouts(args.cutouts)
        else:
            found, texts = fluent_emoji(pathlib.Path(folder))
            (args.output / "LICENSE").write_text(NOTICE)
        everything, concepts = [], []
        for path, name, noun in found:
            square = cutout(path, args.size)
            if square is None:
                continue
            file_name = f"cutouts/{path.stem}.png"
            square.save(args.output / file_name)
            everything.append({"file_name": file_name, "text": noun and with_article(noun) or name})
            if noun:
                concepts.append(everything[-1])

    for name, entries in [("all.jsonl", everything), ("concepts.jsonl", concepts)]:
        (args.output / name).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    words = training_words(texts, [entry["text"] for entry in concepts])
    (args.output / "words.txt").write_text("\n".join(words) + "\n")
    print(f"{len(everything)} pictures, {len(concepts)} of them concepts, in {args.output}")


if __name__ == "__main__":
    main()
