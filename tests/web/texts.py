"""A language model in the page: it answers, learns from records, and answers with what it learned. texts.py URL RECORDS"""

import re
import sys

from playwright.sync_api import expect

from browser import PATIENCE, Visit, browser, fill_option, open_accordion, open_tab, state


def main(url, records):
    with browser() as opened:
        visit = Visit(opened, url)
        page = visit.page
        open_tab(page, "Text")
        page.get_by_role("textbox", name="Text").fill("the quick brown")
        open_accordion(page, "Options")
        page.locator("#complete-max_new_tokens").fill("8")
        page.get_by_role("button", name="Complete", exact=True).click()
        answer = page.get_by_role("region", name="Answer").first
        expect(answer.locator(".answer")).not_to_be_empty(timeout=PATIENCE)
        expect(answer.get_by_role("button", name="Copy the answer")).to_be_visible()

        page.get_by_role("tab", name="Train on records").click()
        page.locator("input[type=file]").first.set_input_files(records)
        expect(page.get_by_text(re.compile(r"\d+ records with the columns"))).to_be_visible()
        page.get_by_label("Name of the run").fill("my-texts")
        fill_option(page, "num_train_epochs", 1)
        page.get_by_role("button", name="Train", exact=True).click()
        expect(page.get_by_role("heading", name="my-texts")).to_be_visible()
        expect(state(page)).to_have_text("finished", timeout=PATIENCE)
        expect(page.locator(".chart-legend")).to_be_visible()

        page.get_by_role("button", name="Try the adapter").click()
        expect(page.locator(".adapter")).to_contain_text("my-texts")
        page.get_by_role("button", name="Complete", exact=True).click()
        expect(page.get_by_role("region", name="Answer")).to_have_count(2, timeout=PATIENCE)
        expect(page.get_by_role("region", name="Answer").first.locator(".answer")).not_to_be_empty(timeout=PATIENCE)
        visit.close()


main(*sys.argv[1:])
