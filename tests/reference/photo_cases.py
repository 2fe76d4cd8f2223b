"""Photos in every mode that Pillow writes, and what PIL and torchvision make of them.

usage: photo_cases.py OUT
OUT/photos/: the images; OUT/expected.safetensors: NAME@SIZE -> float32 [3, SIZE, SIZE]; OUT/draws.safetensors:
the same for a crop of RandomCrop from torch.manual_seed(SEED), NAME@SIZE@SEED, with the size after resizing.
"""

import pathlib
import sys

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors.torch import save_file
from torchvision import transforms

SIZES = (32, 80, 136)


def pattern(width, height, channels, seed):
    """A smooth picture with noise, so that a shifted pixel and a wrong channel both show."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    draw = np.random.default_rng(seed)
    planes = []
    for channel in range(channels):
        waves = np.sin(x / (5 + 3 * channel) + channel) + np.cos(y / (7 + channel)) + x / width - y / height
        planes.append(np.clip(127 + 50 * waves + draw.normal(0, 12, (height, width)), 0, 255))
    return np.stack(planes, -1).astype(np.uint8)


def smooth(width, height):
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    planes = [127 + 60 * np.sin(x / (17 + 3 * c) + c) + 50 * np.cos(y / (23 + 5 * c)) for c in range(3)]
    return Image.fromarray(np.stack(planes, -1).astype(np.uint8))


def write_photos(folder):
    rgb = Image.fromarray(pattern(97, 61, 3, 0))
    grey = Image.fromarray(pattern(61, 97, 1, 1)[..., 0])
    alpha = Image.fromarray(pattern(61, 97, 1, 2)[..., 0])
    rgba = Image.fromarray(pattern(64, 64, 4, 3))
    rgb.save(folder / "rgb.png")
    grey.save(folder / "l.png")
    Image.merge("LA", (grey, alpha)).save(folder / "la.png")
    rgba.save(folder / "rgba.png")
    rgb.convert("1").save(folder / "1.png")
    rgb.quantize(31).save(folder / "p.png")
    rgb.quantize(31).save(folder / "p_transparent.png", transparency=5)
    rgb.quantize(16).save(folder / "p_alphas.png", transparency=bytes(range(0, 256, 16)))
    rgb.save(folder / "rgb_transparent.png", transparency=rgb.getpixel((5, 5)))
    grey.save(folder / "l_transparent.png", transparency=grey.getpixel((5, 5)))
    Image.fromarray(pattern(61, 97, 1, 4)[..., 0].astype(np.uint16) * 257 + 11).save(folder / "i16.png")
    rgb.save(folder / "rgb.bmp")
    rgb.save(folder / "rgb.tiff")
    rgb.save(folder / "lossless.webp", lossless=True)
    rgb.quantize(31).save(folder / "first.gif", save_all=True, append_images=[Image.new("P", rgb.size)])
    for width, height in ((1, 1), (3, 200), (301, 2), (136, 136), (80, 81), (401, 203)):
        Image.fromarray(pattern(width, height, 3, width)).save(folder / f"rgb_{width}x{height}.png")
    exif_png = Image.Exif()
    exif_png[0x0112] = 6
    rgb.save(folder / "oriented.png", exif=exif_png)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        smooth(203, 151).save(folder / f"exif_{orientation}.jpg", quality=92, exif=exif)
    smooth(301, 160).save(folder / "subsampled.jpg", quality=85, subsampling=2, progressive=True)
    smooth(160, 301).convert("L").save(folder / "grey.jpeg", quality=90)
    smooth(120, 90).convert("CMYK").save(folder / "cmyk.jpg", quality=92)


def rgb_of(path):
    image = ImageOps.exif_transpose(Image.open(path))
    if image.mode == "I;16":
        # Pillow has no agreed way from here to 8 bits: take the high byte, as it does for 16-bit colour.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def main(out):
    folder = out / "photos"
    folder.mkdir()
    write_photos(folder)
    finish = [transforms.ToTensor(), transforms.Normalize([0.5], [0.5])]
    expected, draws = {}, {}
    for path in sorted(folder.iterdir()):
        for size in SIZES:
            resize = transforms.Resize(size, interpolation=transforms.InterpolationMode.BILINEAR)
            central = transforms.Compose([resize, transforms.CenterCrop(size), *finish])
            expected[f"{path.name}@{size}"] = central(rgb_of(path))
            for seed in (1, 2):
                torch.manual_seed(seed)
                drawn = transforms.Compose([resize, transforms.RandomCrop(size), *finish])
                draws[f"{path.name}@{size}@{seed}"] = drawn(rgb_of(path))
    save_file(expected, out / "expected.safetensors")
    save_file(draws, out / "draws.safetensors")


main(pathlib.Path(sys.argv[1]))
