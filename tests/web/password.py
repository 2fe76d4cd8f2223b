"""A server with a password: nothing is shown before it, and a wrong one is said to be wrong. password.py URL USER PASSWORD"""

import sys

from playwright.sync_api import expect

from browser import Visit, browser


def main(url, user, password):
    with browser() as opened:
        visit = Visit(opened, url)
        page = visit.page
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        assert page.get_by_role("tab").count() == 0
        page.get_by_label("User").fill(user)
        page.get_by_label("Password").fill(password + "!")
        page.keyboard.press("Enter")
        expect(page.get_by_role("alert")).to_be_visible()
        page.get_by_label("Password").fill(password)
        page.keyboard.press("Enter")
        expect(page.get_by_role("tab", name="Train")).to_be_visible()
        page.reload()
        expect(page.get_by_role("tab", name="Train")).to_be_visible()
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        page.reload()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
        visit.close()


main(*sys.argv[1:])
