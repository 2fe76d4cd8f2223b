"""The page as it comes over the wire: its weight, its policy, nothing from elsewhere, its first screen. page_alone.py URL"""

import gzip
import io
import re
import sys
import urllib.request
from urllib.parse import urljoin

from PIL import Image
from playwright.sync_api import expect

from browser import Visit, browser

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
MOST_BYTES = 150_000
FIRST_SCREEN_MS = 200
TRIES = 5


def fetched(url):
    with urllib.request.urlopen(urllib.request.Request(url, headers={"accept-encoding": "gzip"})) as answer:
        body = answer.read()
        text = gzip.decompress(body) if answer.headers["content-encoding"] == "gzip" else body
        return len(body), text.decode(), answer.headers


def files_of(url):
    """Every file that the page can come to load, with its bytes over the wire, from index.html on."""
    sizes, left = {}, [url]
    while left:
        at = left.pop()
        if at in sizes:
            continue
        sizes[at], text, headers = fetched(at)
        assert headers["content-security-policy"] == POLICY, at
        assert headers["x-content-type-options"] == "nosniff", at
        if at == url:
            found = re.findall(r'(?:href|src)="([^"]+)"', text)
            assert "<style" not in text and not re.search(r"<script>|\sstyle=|\son\w+=", text), "the policy forbids what is inline"
        elif at.endswith((".js", ".mjs")):
            found = re.findall(r"""^(?:import|export)\b[^;'"`]*from\s*["']([^"']+)["']""", text, re.MULTILINE)
            found += [urljoin(url, one) for one in re.findall(r"(?:href|src): '([^']+)'", text)]
        else:
            found = []
        left += [urljoin(at, one) for one in found]
    return sizes


def main(url):
    sizes = files_of(url)
    total = sum(sizes.values())
    assert total < MOST_BYTES, f"the page is {total} bytes over the wire: {sizes}"

    # A module that index.html does not name is found late, one after the other.
    named = set(re.findall(r'(?:href|src)="([^"]+)"', fetched(url)[1]))
    late = [file for file in sizes if file.endswith((".js", ".mjs")) and file.removeprefix(url) not in named and not file.endswith("uplot.js")]
    assert not late, late

    with browser() as opened:
        times = []
        for _ in range(TRIES):
            visit = Visit(opened, url)
            expect(visit.page.get_by_role("tab", name="Train")).to_be_visible()
            times.append(visit.page.evaluate("""() => new Promise(done => new PerformanceObserver(list => {
                const [page] = performance.getEntriesByType('navigation');
                done(list.getEntriesByName('first-contentful-paint')[0].startTime - page.responseStart);
            }).observe({ type: 'paint', buffered: true }))"""))
            visit.close()
        # The others share two cores with whatever else runs.
        assert min(times) < FIRST_SCREEN_MS, times

        # Before its script runs, the page has its colours already.
        visit = Visit(opened, url, java_script_enabled=False, color_scheme="dark")
        corner = Image.open(io.BytesIO(visit.page.screenshot())).convert("RGB").getpixel((1, 1))
        assert max(corner) < 40, corner
        visit.close()


main(*sys.argv[1:])
