"""A model's folder with its weights as the pickle that older repositories have.

    pickled.py OUT '{"model": DIR}'
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file


def main(out, model):
    out = Path(out)
    out.mkdir()
    for file in Path(model).glob("*.json"):
        shutil.copy(file, out)
    torch.save(load_file(Path(model, "model.safetensors")), out / "pytorch_model.bin")


if __name__ == "__main__":
    main(sys.argv[1], **json.loads(sys.argv[2]))
