"""Reloads in the middle of a text and of pictures: what is there already is shown, and it goes on. reloads.py URL"""

import sys

from playwright.sync_api import expect

from browser import PATIENCE, Visit, browser, open_accordion, open_tab

TOKENS = 400


def a_text_goes_on(page):
    open_tab(page, "Text")
    page.get_by_role("textbox", name="Text").fill("red house")
    open_accordion(page, "Options")
    page.locator("#complete-max_new_tokens").fill(str(TOKENS))
    page.get_by_role("button", name="Complete", exact=True).click()
    answer = page.get_by_role("region", name="Answer").first
    expect(answer.locator(".answer")).not_to_be_empty(timeout=PATIENCE)
    before = answer.locator(".answer").inner_text()
    page.reload()
    # At once, and not only once the next word comes.
    expect(answer.locator(".answer")).not_to_be_empty()
    expect(answer).to_have_attribute("aria-busy", "true")
    after = answer.locator(".answer").inner_text()
    assert after.startswith(before), (before, after)
    page.wait_for_function("before => document.querySelector('.answer').innerText.length > before", arg=len(after), timeout=PATIENCE)
    # What was written before a stop stays.
    answer.get_by_role("button", name="Stop").click()
    expect(answer).to_have_attribute("aria-busy", "false", timeout=PATIENCE)
    stopped = answer.locator(".answer").inner_text()
    assert stopped.startswith(after), (after, stopped)
    page.reload()
    expect(answer.locator(".answer")).to_have_text(stopped)


def pictures_go_on(page):
    open_tab(page, "Try")
    page.locator("#prompt").fill("a bird")
    for label, value in (("Sampling steps", 20), ("Pictures", 5)):
        page.get_by_label(f"{label}, number").fill(str(value))
        page.get_by_label(f"{label}, number").press("Enter")
    page.get_by_role("button", name="Draw", exact=True).click()
    pictures = page.get_by_role("list", name="Pictures, newest first").locator(".picture")
    expect(pictures.first).to_be_visible(timeout=PATIENCE)
    page.reload()
    expect(pictures.first).to_be_visible()
    assert 1 <= pictures.count() < 5, pictures.count()
    expect(page.get_by_role("region", name="At work").get_by_role("progressbar")).to_be_visible()
    expect(pictures).to_have_count(5, timeout=PATIENCE)
    expect(page.get_by_role("region", name="At work")).to_have_count(0)


def main(url):
    with browser() as opened:
        visit = Visit(opened, url)
        a_text_goes_on(visit.page)
        pictures_go_on(visit.page)
        visit.close()


main(*sys.argv[1:])
