"""The page in a frame of another site, as Hugging Face shows a Space: through a proxy that says that it has TLS, in a browser that keeps
the cookies of other sites apart. in_a_frame.py URL; the server allows frames on http://localhost of any port.
"""

import contextlib
import http.client
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from playwright.sync_api import expect

from browser import browser, fill_option


@contextlib.contextmanager
def served(handler):
    """The port at which `handler` answers."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_port
    server.shutdown()


def proxy(place):
    class Proxy(BaseHTTPRequestHandler):
        def forward(self):
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            there = http.client.HTTPConnection(place)
            there.request(self.command, self.path, body, dict(self.headers) | {"X-Forwarded-Proto": "https"})
            answer = there.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection"):
                    self.send_header(name, value)
            self.end_headers()
            # The page may go away before the end, of the stream of events always.
            with contextlib.suppress(OSError):
                while piece := answer.read1(1 << 16):
                    self.wfile.write(piece)
                    self.wfile.flush()

        do_GET = do_POST = do_PATCH = do_DELETE = forward

        def log_message(self, *_):
            pass

    return Proxy


def around(inner):
    class Around(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(f'<iframe src="{inner}" width="1000" height="800"></iframe>'.encode())

        def log_message(self, *_):
            pass

    return Around


def main(url):
    # Chromium takes localhost and 127.0.0.1 for two sites, and trusts both as it trusts TLS.
    with contextlib.ExitStack() as open_now:
        inner = open_now.enter_context(served(proxy(urlsplit(url).netloc)))
        outer = open_now.enter_context(served(around(f"http://127.0.0.1:{inner}/")))
        opened = open_now.enter_context(browser("--test-third-party-cookie-phaseout"))
        context = opened.new_context()
        page = context.new_page()
        page.goto(f"http://localhost:{outer}/")
        frame = page.frame_locator("iframe")
        expect(frame.get_by_role("complementary")).to_contain_text("Limits:")
        cookies = context.cookies()
        visitor = [cookie for cookie in cookies if cookie["name"] == "lorabooth_visitor"]
        assert len(visitor) == 1 and visitor[0]["secure"] and visitor[0]["sameSite"] == "None", cookies
        with page.expect_response("**/api/sets") as made:
            frame.get_by_role("button", name="Use the penguin").click()
        photos = made.value.json()["id"]
        expect(frame.locator(".photo")).to_have_count(6)
        assert frame.locator(".photo img").first.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
        # Such a browser lets a frame store nothing else; what was chosen stays all the same while more is typed.
        fill_option(frame, "max_train_steps", 7)
        expect(frame.locator(".plan")).to_contain_text("7 steps")
        fill_option(frame, "instance_prompt", "a photo of sks penguin")
        expect(frame.locator(".photo")).to_have_count(6)
        expect(frame.locator(".plan")).to_contain_text("7 steps")
        # After a reload it is the same visitor, who still sees the photos.
        page.reload()
        expect(frame.get_by_role("complementary")).to_contain_text("Limits:")
        asked = "photos => fetch(`/api/sets/${photos}`).then(answer => answer.status)"
        assert page.frames[1].evaluate(asked, photos) == 200

        # Another site may not.
        said = []
        page.on("console", lambda message: said.append(message.text))
        page.goto(f"http://127.0.0.1:{outer}/")
        page.wait_for_timeout(1000)
        assert any("frame-ancestors" in text or "frame" in text.lower() for text in said), said
        expect(page.frame_locator("iframe").get_by_role("complementary")).to_have_count(0)


main(*sys.argv[1:])
