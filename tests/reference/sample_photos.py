"""Makes photos to train on: smooth colours with a bright disc, of uneven sizes, as PNG (decoders agree on it to the bit).

    sample_photos.py OUT_DIR '{"count": 3}'

count   of photos, 3; named 00.png, 01.png, …
seed    0
modes   of the photos in turn, ["RGB"]: any of RGB, RGBA, L, LA, P, 1, I;16
sizes   [width, height] of the photos in turn, by default landscape, portrait, square
orientations   EXIF orientations of the photos in turn, [1]
captions       texts to put beside the photos as NAME.txt, none
"""

import json
import sys
from pathlib import Path

import numpy
from PIL import Image


def photo(generator, width, height):
    coarse = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=numpy.uint8))
    pixels = numpy.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).copy()
    rows, columns = numpy.mgrid[:height, :width]
    radius = min(width, height) * 0.25
    centre = generator.uniform(0.3, 0.7, 2) * (height, width)
    pixels[(rows - centre[0]) ** 2 + (columns - centre[1]) ** 2 < radius**2] = generator.integers(128, 256, 3)
    return Image.fromarray(pixels)


def in_mode(picture, mode):
    if mode in ("RGBA", "LA"):
        alpha = Image.linear_gradient("L").resize(picture.size)
        picture = picture.convert(mode[:-1])
        picture.putalpha(alpha)
        return picture
    if mode == "I;16":
        return Image.fromarray(numpy.asarray(picture.convert("L")).astype(numpy.uint16) * 257)
    return picture.convert(mode)


def main(out, count=3, seed=0, modes=("RGB",), sizes=((120, 90), (80, 112), (96, 96)), orientations=(1,), captions=()):
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    generator = numpy.random.default_rng(seed)
    for i in range(count):
        picture = in_mode(photo(generator, *sizes[i % len(sizes)]), modes[i % len(modes)])
        exif = Image.Exif()
        exif[0x0112] = orientations[i % len(orientations)]
        picture.save(out / f"{i:02}.png", exif=exif)
        if i < len(captions):
            (out / f"{i:02}.txt").write_text(captions[i])


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
