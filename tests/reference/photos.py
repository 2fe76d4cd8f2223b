"""Photos as training reads them: PEFT's script's pipeline, with EXIF orientation applied and transparency over white.

    photos.py OUT.safetensors '{"files": [PATH, …], "resolution": 64}'

Writes one tensor [3, R, R] in [-1, 1] for each file, cropped at the centre, under its number: "0", "1", …
"""

import json
import sys

import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torchvision.transforms import InterpolationMode, functional


def open_photo(path):
    photo = ImageOps.exif_transpose(Image.open(path))
    if photo.has_transparency_data:
        photo = photo.convert("RGBA")
        photo = Image.alpha_composite(Image.new("RGBA", photo.size, "white"), photo)
    return photo.convert("RGB")


def resized(path, resolution):
    """The photo with its shorter side at `resolution`."""
    return functional.resize(open_photo(path), resolution, interpolation=InterpolationMode.BILINEAR)


def random_crop(photo, resolution):
    """RandomCrop of torchvision: top, then left, from torch's own generator; nothing is drawn where all fits."""
    width, height = photo.size
    if width == resolution and height == resolution:
        return photo
    top = int(torch.randint(0, height - resolution + 1, (1,)))
    left = int(torch.randint(0, width - resolution + 1, (1,)))
    return functional.crop(photo, top, left, resolution, resolution)


def as_tensor(photo):
    return functional.normalize(functional.to_tensor(photo), [0.5], [0.5])


def main(out, files, resolution):
    save_file({str(i): as_tensor(functional.center_crop(resized(path, resolution), resolution)) for i, path in enumerate(files)}, out)


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
