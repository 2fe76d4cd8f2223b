"""One person's whole way: photos, training, watching, trying, taking the file home. train_and_try.py URL PHOTOS TEMPORARY MODEL"""

import re
import sys
from pathlib import Path

from playwright.sync_api import expect

from browser import PATIENCE, Visit, be_quick, browser, fill_option, open_accordion, open_tab, state

STEPS = 60


def photos_are_dropped(page, photos, temporary):
    bad = temporary / "notes.png"
    bad.write_text("this is no picture")
    page.locator("input[type=file]").first.set_input_files([*photos, bad])
    expect(page.locator(".photo")).to_have_count(len(photos))
    expect(page.locator(".refused")).to_contain_text("notes.png")
    first = page.get_by_label(re.compile("Caption of")).first
    first.fill("a photo of sks bird on a meadow")
    first.press("Enter")
    page.get_by_role("button", name=re.compile("^Remove .*png|^Remove .*jpg")).last.click()
    expect(page.locator(".photo")).to_have_count(len(photos) - 1)


def settings_are_checked_and_kept(page):
    # Nothing is red before anybody pressed the button.
    be_quick(page)
    fill_option(page, "instance_prompt", "")
    expect(page.locator(".field-error")).to_have_count(0)
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page.locator("#option-instance_prompt-error")).to_be_visible()
    fill_option(page, "instance_prompt", "a photo of sks bird")
    fill_option(page, "max_train_steps", STEPS)
    fill_option(page, "validation_steps", 20)
    expect(page.locator(".plan")).to_contain_text(f"{STEPS} steps")
    expect(page.locator(".plan .legend li").first).to_be_visible()
    page.get_by_label("Name of the run").fill("my-bird")
    fill_option(page, "lora_r", "many")
    expect(page.locator("#option-lora_r-error")).to_contain_text("many")
    fill_option(page, "lora_r", "4")
    expect(page.locator("#option-lora_r-error")).to_have_count(0)
    open_accordion(page, "Output")
    fill_option(page, "checkpointing_steps", 20)
    page.reload()
    expect(page.locator("#option-lora_r")).to_have_value("4")
    expect(page.get_by_label("Name of the run")).to_have_value("my-bird")
    expect(page.get_by_label(re.compile("Caption of")).first).to_have_value("a photo of sks bird on a meadow")
    expect(page.locator(".plan")).to_contain_text(f"{STEPS} steps")
    open_accordion(page, "The command line of this run")
    expect(page.locator(".plan pre")).to_contain_text("lorabooth train dreambooth")


def run_is_watched(page):
    page.get_by_role("button", name="Train", exact=True).click()
    expect(page).to_have_url(re.compile("#watch/"))
    expect(state(page)).to_have_text("running", timeout=PATIENCE)
    expect(page.locator("progress").first).to_be_visible()
    expect(page.locator(".chart-legend")).to_contain_text("smoothed", timeout=PATIENCE)
    expect(page.locator(".curve canvas")).to_be_visible()


def pause_try_and_go_on(page):
    page.get_by_role("button", name="Pause").click()
    expect(state(page)).to_have_text("paused", timeout=PATIENCE)
    page.wait_for_timeout(500)
    step = page.locator(".chart-legend li").first.inner_text()
    before = page.locator(".gallery .picture").count()
    page.locator("#sample-prompt").fill("a photo of sks bird on a red background")
    page.locator("#sample-seed").fill("3")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.locator(".gallery .picture")).to_have_count(before + 1, timeout=PATIENCE)
    # Of a paused run nothing moves but the picture.
    assert page.locator(".chart-legend li").first.inner_text() == step
    page.get_by_role("button", name="Continue").click()
    expect(state(page)).to_have_text("running", timeout=PATIENCE)


def reload_loses_nothing(page):
    name = page.get_by_role("heading", level=2, name="my-bird").inner_text()
    pictures = page.locator(".gallery .picture").count()
    page.reload()
    expect(page.get_by_role("heading", level=2, name=name)).to_be_visible()
    expect(page.locator(".chart-legend")).to_be_visible()
    assert page.locator(".gallery .picture").count() >= pictures


def stop_and_resume(page):
    page.get_by_role("button", name="Stop").click()
    page.get_by_role("dialog").get_by_role("button", name="Stop").click()
    expect(state(page)).to_have_text("stopped", timeout=PATIENCE)
    stopped_at = int(re.search(r"\d+", page.locator(".chart-legend li").first.inner_text())[0])
    assert 0 < stopped_at < STEPS, stopped_at
    page.get_by_role("button", name="Resume").click()
    expect(state(page)).to_have_text("finished", timeout=PATIENCE)
    expect(page.locator(".chart-legend")).to_contain_text(f"Step {STEPS}")
    expect(page.locator(".gallery")).to_contain_text(f"step {STEPS}")
    expect(page.locator(".gallery")).to_contain_text("colour")
    open_accordion(page, "The curve in numbers")
    expect(page.locator("article table tbody tr").last.locator("th")).to_have_text(str(STEPS))


def adapter_is_tried(page):
    page.get_by_role("button", name="Try the adapter").click()
    expect(page.locator("#prompt")).to_have_value("a photo of sks bird")
    expect(page.locator(".adapter")).to_have_count(1)
    page.get_by_label("Sampling steps, number").fill("4")
    page.get_by_label("Sampling steps, number").press("Enter")
    page.get_by_label("Pictures, number").fill("2")
    page.get_by_label("Pictures, number").press("Enter")
    page.get_by_label("A random seed each time").uncheck()
    page.get_by_label("Seed", exact=True).fill("11")
    page.get_by_role("button", name="Draw", exact=True).click()
    pictures = page.get_by_role("list", name="Pictures, newest first").locator(".picture")
    expect(pictures).to_have_count(2, timeout=PATIENCE)
    expect(pictures.first).to_contain_text("seed 12")
    pictures.first.click()
    large = page.get_by_role("dialog")
    expect(large).to_contain_text("a photo of sks bird")
    page.keyboard.press("ArrowRight")
    expect(large.get_by_role("heading")).to_have_text("Picture 2 of 2")
    page.keyboard.press("ArrowLeft")
    expect(large.get_by_role("heading")).to_have_text("Picture 1 of 2")
    large.get_by_role("button", name="Use this seed").click()
    expect(page.get_by_label("Seed", exact=True)).to_have_value("12")


def grid_picks_the_checkpoint(page):
    open_accordion(page, "Grid: which checkpoint")
    page.get_by_label("Strengths").fill("0.5, 1")
    # Steps 20, 40 and 60, and that at which the run was stopped.
    draw = page.get_by_role("button", name=re.compile(r"Draw \d+ pictures"))
    count = int(re.search(r"\d+", draw.inner_text())[0])
    assert count in (6, 8), count
    draw.click()
    expect(page.locator("table.grid .picture")).to_have_count(count, timeout=PATIENCE)
    expect(page.locator("table.grid tbody tr")).to_have_count(2)
    page.get_by_role("button", name="Choose step 20").click()
    expect(page.get_by_role("button", name="Step 20 is the adapter")).to_be_visible()


def file_is_taken_home(page, temporary, model):
    from diffusers import StableDiffusionPipeline
    from safetensors.torch import load_file

    open_tab(page, "Library")
    card = page.get_by_role("article", name="my-bird")
    card.locator("summary", has_text="Download").click()
    with page.expect_download() as waiting:
        card.get_by_role("link", name="kohya file").click()
    file = temporary / waiting.value.suggested_filename
    waiting.value.save_as(file)
    assert file.suffix == ".safetensors" and "my-bird" in file.name, file
    assert all(key.startswith("lora_unet_") for key in load_file(file)), "not the names that kohya gives"
    loaded, alphas = StableDiffusionPipeline.lora_state_dict(file)
    assert alphas and set(alphas.values()) == {32.0}, alphas
    pipeline = StableDiffusionPipeline.from_pretrained(model)
    pipeline.load_lora_weights(file)
    taken = [name for name, _ in pipeline.unet.named_parameters() if ".lora_" in name]
    assert len(taken) == len(loaded) > 0, (len(taken), len(loaded))


def library_is_kept_in_order(page):
    card = page.get_by_role("article", name="my-bird")
    card.get_by_role("button", name="Rename").click()
    page.get_by_role("dialog").get_by_label("Name").fill("penguin")
    page.keyboard.press("Enter")
    expect(page.get_by_role("article", name="penguin")).to_be_visible()
    open_tab(page, "Train")
    page.get_by_label("Copy settings from a run").select_option(label="my-bird (finished)")
    expect(page.locator("#option-lora_r")).to_have_value("4")
    open_tab(page, "Library")
    page.get_by_role("article", name="penguin").get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(page.get_by_role("article", name="penguin")).to_be_visible()
    page.get_by_role("article", name="penguin").get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("article", name="penguin")).to_have_count(0)


def main(url, photos, temporary, model):
    photos, temporary = sorted(Path(photos).glob("*.png")), Path(temporary)
    with browser() as opened:
        visit = Visit(opened, url, accept_downloads=True)
        page = visit.page
        photos_are_dropped(page, photos, temporary)
        settings_are_checked_and_kept(page)
        run_is_watched(page)
        pause_try_and_go_on(page)
        reload_loses_nothing(page)
        stop_and_resume(page)
        adapter_is_tried(page)
        grid_picks_the_checkpoint(page)
        file_is_taken_home(page, temporary, model)
        library_is_kept_in_order(page)
        visit.close()


main(*sys.argv[1:])
