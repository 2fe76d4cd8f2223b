"""Adapter files of other programs come in, draw, and say what they are for where they do not fit. imports.py URL TEMPORARY"""

import json
import sys
import zipfile
from pathlib import Path

import numpy as np
from playwright.sync_api import expect
from safetensors.numpy import save

import server
from browser import PATIENCE, Visit, browser, open_tab

MODULE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
BASE = "stable-diffusion-v1-5/stable-diffusion-v1-5"


def of_a_larger_model(file):
    """A zip of a PEFT folder whose one module has Stable Diffusion 1.5's width."""
    config = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 2, "lora_dropout": 0.0, "bias": "none", "target_modules": ["to_k"],
        "base_model_name_or_path": BASE, "init_lora_weights": True, "inference_mode": True,
    }
    pair = {f"base_model.model.{MODULE}.lora_{end}.weight": np.ones(shape, np.float32) for end, shape in (("A", (2, 768)), ("B", (320, 2)))}
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("dog/unet/adapter_config.json", json.dumps(config))
        archive.writestr("dog/unet/adapter_model.safetensors", save(pair))
    return file


def draws(page, name):
    open_tab(page, "Library")
    page.get_by_role("article", name=name, exact=True).get_by_role("button", name="Try").click()
    expect(page.locator(".adapter")).to_contain_text(name)
    page.locator("#prompt").fill("a photo of sks bird")
    page.get_by_label("Sampling steps, number").fill("2")
    page.get_by_label("Sampling steps, number").press("Enter")
    pictures = page.get_by_role("list", name="Pictures, newest first").locator(".picture")
    before = pictures.count()
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(pictures).to_have_count(before + 1, timeout=PATIENCE)
    pictures.first.click()
    expect(page.get_by_role("dialog")).to_contain_text(f"{name} × 1")
    page.keyboard.press("Escape")


def main(url, temporary):
    temporary = Path(temporary)
    run = server.trained(url, 2)
    kohya = server.download(url, f"api/adapters/{run}/download?format=kohya", temporary / "from-kohya.safetensors")
    peft = server.download(url, f"api/adapters/{run}/download?format=peft", temporary / "from-peft.zip")
    server.ask(url, f"api/jobs/{run}", method="DELETE")
    with browser() as opened:
        visit = Visit(opened, url)
        page = visit.page
        open_tab(page, "Library")
        expect(page.get_by_text("No adapter yet.")).to_be_visible()
        page.locator("input[type=file]").set_input_files([kohya, peft])
        expect(page.locator(".notice", has_text="2 adapters imported")).to_be_visible()
        draws(page, "from-kohya")
        draws(page, "from-peft")

        # What it wants is said where somebody tries it.
        page.locator("input[type=file]").set_input_files(of_a_larger_model(temporary / "large-dog.zip"))
        expect(page.locator(".adapter").last).to_contain_text("large-dog")
        page.get_by_role("button", name="Draw", exact=True).click()
        error = page.locator(".column > .notice.error")
        expect(error).to_contain_text(f"it was made for {BASE}", timeout=PATIENCE)
        expect(error).to_contain_text("large-dog")
        expect(error).not_to_contain_text("adapters/")

        # And what is no adapter at all is refused at once.
        page.locator("input[type=file]").set_input_files({"name": "dog.safetensors", "mimeType": "", "buffer": b"a dog"})
        expect(page.locator(".notices .error")).to_contain_text("dog.safetensors")
        visit.close()


main(*sys.argv[1:])
