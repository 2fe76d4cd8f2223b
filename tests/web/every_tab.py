"""Every tab for everybody: axe in light and dark, 390 pixels, the keyboard alone; screenshots. every_tab.py URL PHOTOS [FOLDER]"""

import re
import sys
from pathlib import Path

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from browser import PATIENCE, Visit, browser, open_accordion, open_tab, state, train

TABS = ["Train", "Watch", "Try", "Text", "Library"]
PHONE = {"width": 390, "height": 844}


def something_is_there(visit, photos):
    """A run with samples and an adapter, a picture, a grid: empty tabs prove little."""
    page = visit.page
    train(page, photos, 12, 4, "penguin")
    expect(state(page)).to_have_text("finished", timeout=PATIENCE)
    page.get_by_role("button", name="Try the adapter").click()
    page.get_by_label("Sampling steps, number").fill("4")
    page.get_by_label("Sampling steps, number").press("Enter")
    page.get_by_role("button", name="Draw", exact=True).click()
    expect(page.get_by_role("list", name="Pictures, newest first").locator(".picture")).to_have_count(1, timeout=PATIENCE)
    open_accordion(page, "Grid: which checkpoint")
    page.get_by_role("button", name=re.compile(r"Draw \d+ pictures")).click()
    expect(page.locator("table.grid .picture").last).to_be_visible(timeout=PATIENCE)
    expect(page.get_by_role("button", name="Stop")).to_have_count(0, timeout=PATIENCE)
    return visit.context.storage_state()


def faults(page, where):
    found = Axe().run(page).response["violations"]
    return [f"{where}: {fault['id']}: {node['target']} {node['failureSummary']}" for fault in found for node in fault["nodes"]]


def look(opened, url, kept, folder):
    found = []
    for name, context in {
        "light": {"color_scheme": "light"},
        "dark": {"color_scheme": "dark"},
        "phone": {"color_scheme": "light", "viewport": PHONE, "device_scale_factor": 2},
        "phone-dark": {"color_scheme": "dark", "viewport": PHONE, "device_scale_factor": 2},
    }.items():
        # axe is a script of another source than the page's, which its policy would refuse.
        visit = Visit(opened, url, storage_state=kept, bypass_csp=True, **context)
        for tab in TABS:
            open_tab(visit.page, tab)
            visit.page.wait_for_timeout(700)
            if folder:
                visit.page.screenshot(path=Path(folder) / f"{tab.lower()}-{name}.png", full_page=True)
            for summary in visit.page.locator("summary").all():
                if summary.locator("xpath=..").get_attribute("open") is None:
                    summary.click()
            found += faults(visit.page, f"{tab} in {name}")
            width = visit.page.evaluate("document.documentElement.scrollWidth")
            allowed = context.get("viewport", {"width": 1280})["width"]
            assert width <= allowed, f"{tab} in {name} is {width} pixels wide"
        open_tab(visit.page, "Text")
        visit.page.get_by_role("tab", name="Train on records").click()
        visit.page.wait_for_timeout(500)
        found += faults(visit.page, f"Train on records in {name}")
        open_tab(visit.page, "Try")
        visit.page.locator(".picture").last.click()
        expect(visit.page.get_by_role("dialog")).to_be_visible()
        found += faults(visit.page, f"a picture in {name}")
        if folder:
            visit.page.screenshot(path=Path(folder) / f"picture-{name}.png")
        visit.close()
    assert not found, "\n".join(found)


def keyboard_alone(opened, url, kept):
    visit = Visit(opened, url, storage_state=kept)
    page = visit.page
    expect(page.get_by_role("tab", name="Train")).to_be_visible()
    page.get_by_role("tab", name="Train").focus()
    for tab in [*TABS[1:], TABS[0]]:
        page.keyboard.press("ArrowRight")
        expect(page.get_by_role("tab", name=tab)).to_be_focused()
        expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
    page.keyboard.press("End")
    expect(page.get_by_role("tab", name="Library")).to_be_focused()
    # From the tab on, everything that can be used is reached, and shows that it is.
    open_tab(page, "Try")
    reached = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        kind, outline = page.evaluate("""() => {
            const focused = document.activeElement;
            if (focused === document.body) return ['', ''];
            const seen = focused.matches('.unseen') ? focused.closest('.drop') : focused;
            return [focused.id || focused.textContent.trim().slice(0, 20), getComputedStyle(seen ?? focused).outlineStyle];
        }""")
        if kind == "" or kind in reached:
            continue
        reached.add(kind)
        assert outline != "none", f"{kind} does not show the focus"
    assert {"prompt", "negative-prompt", "try-model", "try-steps", "random", "Draw"} <= reached, reached
    # A dialog takes the focus and gives it back.
    picture = page.locator(".picture").last
    picture.focus()
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    assert page.evaluate("document.activeElement.closest('dialog') !== null")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    expect(picture).to_be_focused()
    visit.close()


def main(url, photos, folder=None):
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
    with browser() as opened:
        first = Visit(opened, url)
        kept = something_is_there(first, sorted(Path(photos).glob("*.png")))
        first.close()
        look(opened, url, kept, folder)
        keyboard_alone(opened, url, kept)


main(*sys.argv[1:])
