"""What `lorabooth serve` bears: serve_stress.py PROGRAM PART...

streams    what 200 open event streams cost beside a training
malformed  10,000 requests that nobody means well, while a job runs and one waits
jobs       500 trainings of 2 steps: what grows
picture    from the load of the page to the first picture, in Chromium

Each part starts a server of its own on an empty folder and prints one line of JSON. Times of processors are those of the threads, not
of the clock, so that other programs on the machine count less. `malformed` takes schemathesis (PyPI), `picture` playwright.
"""

import asyncio
import contextlib
import http.client
import json
import os
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import urlsplit

TICKS = os.sysconf("SC_CLK_TCK")
OPTIONS = {
    "model": "demo", "instance_prompt": "a photo of sks bird", "train_batch_size": 1, "lora_r": 2, "mixed_precision": "no",
    "validation_prompt": "", "seed": 3,
}


class Server:
    """A server on an empty folder."""

    def __init__(self, program, *flags):
        self.data = tempfile.mkdtemp(prefix="serve-stress-")
        command = [program, "serve", "--port", "0", "--device", "cpu", "--threads", "1", "--json", "--data-dir", self.data, *flags]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.url = json.loads(self.process.stdout.readline())["url"]
        parts = urlsplit(self.url)
        self.place = (parts.hostname, parts.port)

    def end(self):
        self.process.terminate()
        code = self.process.wait(60)
        shutil.rmtree(self.data)
        assert code == 0, f"the server ended with {code}"

    def ask(self, method, path, body=None):
        """Status and JSON of an answer."""
        connection = http.client.HTTPConnection(*self.place, timeout=120)
        headers = {} if body is None else {"content-type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        return answer.status, json.loads(text) if text else None

    def get(self, path):
        status, value = self.ask("GET", path)
        assert status == 200, (path, status, value)
        return value

    def post(self, path, body):
        status, value = self.ask("POST", path, body)
        assert status < 300, (path, status, value)
        return value

    def train(self, photos, steps):
        options = OPTIONS | {"max_train_steps": steps}
        return self.post("/api/jobs", {"kind": "train_dreambooth", "set": photos, "options": options})["id"]

    def wait_for(self, job, is_it):
        while not is_it(found := self.get(f"/api/jobs/{job}")):
            time.sleep(0.05)
        return found

    def threads(self):
        """Seconds of the processor that each kind of thread took."""
        seconds = {}
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            with contextlib.suppress(OSError):
                name, numbers = task.joinpath("stat").read_text().split("(", 1)[1].rsplit(")", 1)
                spent = sum(map(int, numbers.split()[11:13])) / TICKS
                seconds[name] = seconds.get(name, 0) + spent
        return seconds

    def size(self):
        """What the process holds and the folder has in it."""
        proc = Path(f"/proc/{self.process.pid}")
        memory = next(line for line in proc.joinpath("status").read_text().splitlines() if line.startswith("RssAnon"))
        data = Path(self.data)
        return {
            "memory_mb": round(int(memory.split()[1]) / 1024, 1),
            "threads": len(list(proc.joinpath("task").iterdir())),
            "files_open": len(list(proc.joinpath("fd").iterdir())),
            "temporary": len(list(data.joinpath("temporary").iterdir())),
            "database_mb": round(sum(file.stat().st_size for file in data.glob("server.sqlite*")) / 2**20, 2),
        }


def penguin(server):
    return server.post("/api/sets", {"example": "penguin"})["id"]


# --- 200 streams -----------------------------------------------------------------------------------------------------------------

def read_streams(host, port, count):
    """Opens `count` streams and reads them until standard input ends; a process of its own. Prints the bytes that came."""
    async def read():
        total = 0
        opened = 0

        async def one():
            nonlocal total, opened
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"GET /api/events HTTP/1.1\r\nhost: localhost\r\n\r\n")
            while piece := await reader.read(1 << 16):
                opened += piece.startswith(b"HTTP/1.1 200")
                total += len(piece)

        tasks = [asyncio.create_task(one()) for _ in range(count)]
        while opened < count:
            await asyncio.sleep(0.05)
        print("open", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        print(total, flush=True)
        for task in tasks:
            task.cancel()

    asyncio.run(read())


def streams(program, count=200, windows=12, seconds=10):
    server = Server(program)
    job = server.train(penguin(server), 1_000_000)
    server.wait_for(job, lambda job: (job["progress"] or {}).get("phase") == "training" and job["progress"]["done"] > 20)
    found = {0: [], count: []}
    bytes_read = 0
    for window in range(windows):
        # In turn, so that what other programs do meets both alike.
        open_now = [0, count, count, 0][window % 4]
        reader = None
        if open_now:
            command = [sys.executable, __file__, "--read", *map(str, server.place), str(count)]
            reader = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            assert reader.stdout.readline() == "open\n"
        steps, before, began = server.get(f"/api/jobs/{job}")["progress"]["done"], server.threads(), time.monotonic()
        time.sleep(seconds)
        after, wall = server.threads(), time.monotonic() - began
        steps = server.get(f"/api/jobs/{job}")["progress"]["done"] - steps
        spent = {name: after[name] - before.get(name, 0) for name in after}
        # What it adds to the thread that trains, and what the others take of a core meanwhile.
        training = spent.pop("jobs") / steps
        found[open_now].append({"training_ms_a_step": 1000 * training, "others_of_a_core": sum(spent.values()) / wall})
        if reader:
            bytes_read += int(reader.communicate()[0])
    server.post(f"/api/jobs/{job}/stop", {})
    server.wait_for(job, lambda job: job["state"] == "stopped")
    server.end()
    middle = {
        many: {what: round(statistics.median(window[what] for window in windows), 4) for what in windows[0]}
        for many, windows in found.items()
    }
    training = middle[count]["training_ms_a_step"] / middle[0]["training_ms_a_step"] - 1
    others = middle[count]["others_of_a_core"] - middle[0]["others_of_a_core"]
    return {
        "part": "streams", "streams": count, "mb_read": round(bytes_read / 2**20), "without": middle[0], "with": middle[count],
        "training_slower_by": round(training, 3), "more_of_a_core": round(others, 4),
    }


# --- malformed requests ----------------------------------------------------------------------------------------------------------

HEADS = [
    b"", b"\r\n\r\n", b"GET", b"GET / HTTP/1.1\r\n", b"GET / HTTP/9.9\r\nhost: localhost\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 1000 + b"\r\n",
    b"GET / HTTP/1.1\r\nhost: localhost\r\nhost: evil.example\r\n\r\n", b"GET / HTTP/1.1\r\nhost:\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"POST /api/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: -1\r\n\r\n",
    b"POST /api/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-length: 99999999999999999999999\r\n\r\n",
    b"POST /api/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"kind\":",
    b"POST /api/jobs HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\ncontent-type: application/json\r\n\r\nzz\r\n",
    b"POST /api/jobs HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\ncontent-length: 3\r\n\r\n0\r\n\r\n",
    b"POST /api/sets/x/files HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data\r\ncontent-length: 1\r\n\r\nx",
    b"POST /api/sets HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 4\r\n\r\n\xff\xfe\x00\x00",
    b"GET /api/events HTTP/1.1\r\nhost: localhost\r\nlast-event-id: -5\r\n\r\n", b"GET /%ff%fe HTTP/1.1\r\nhost: localhost\r\n\r\n",
    b"GET http://169.254.169.254/ HTTP/1.1\r\nhost: localhost\r\n\r\n", b"CONNECT evil.example:443 HTTP/1.1\r\nhost: evil.example\r\n\r\n",
]


def knock(place, head):
    """Sends bytes and reads for a moment: the status, if there is one."""
    try:
        with socket.create_connection(place, timeout=30) as peer:
            peer.sendall(head)
            peer.settimeout(0.2)
            answer = peer.recv(64)
            return int(answer.split(b" ")[1]) if answer.startswith(b"HTTP/1.1 ") else None
    except (OSError, ValueError, IndexError):
        return None


def crowd(place, count):
    """`count` connections that say half a word and stay, as many at a time as the system lets us have."""
    import resource
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    at_a_time = min(count, hard - 100)
    for begin in range(0, count, at_a_time):
        peers = []
        for _ in range(min(at_a_time, count - begin)):
            peer = socket.socket()
            peer.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                peer.connect(place)
            peers.append(peer)
        time.sleep(1)
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.send(b"POST /api/jobs HTTP/1.1\r\nhost: local")
        time.sleep(8)
        for peer in peers:
            peer.close()


def malformed(program, count=10_000):
    beside = Path(sys.executable).with_name("schemathesis")
    command = beside if beside.exists() else shutil.which("schemathesis")
    assert command, "schemathesis is needed: pip install schemathesis"
    server = Server(program)
    photos = penguin(server)
    running = server.train(photos, 1_000_000)
    server.wait_for(running, lambda job: (job["progress"] or {}).get("phase") == "training")
    waiting = server.train(photos, 2)
    sizes = {"before": server.size()}
    # The first round fills what is filled once: the ring of events, and buffers of as many connections as there can be.
    requests, errors = schemathesis(command, server, 120)
    for _ in range(3):
        crowd(server.place, 10_000)
    sizes["first round"] = server.size()
    statuses = {}
    generator = random.Random(0)

    def knocks(number):
        for _ in range(number):
            head = generator.choice(HEADS)
            if generator.random() < 0.5:
                head = bytearray(head)
                for _ in range(generator.randrange(1, 6)):
                    if head:
                        head[generator.randrange(len(head))] = generator.randrange(256)
            status = knock(server.place, bytes(head))
            statuses[status] = statuses.get(status, 0) + 1

    threads = [threading.Thread(target=knocks, args=(max(0, count - requests) // 32 + 1,)) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    slow_bodies(server)
    crowd(server.place, 10_000)
    time.sleep(6)
    again, more = schemathesis(command, server, 120)
    sizes["second round"] = server.size()
    requests, errors = requests + again, errors + more
    answered = time.monotonic()
    assert server.get("/api/state")["signed_in"]
    answered = time.monotonic() - answered
    # Nothing was lost: one still runs, and goes on; the other has its turn behind it.
    done = server.get(f"/api/jobs/{running}")
    assert done["state"] == "running", done
    server.wait_for(running, lambda job: job["progress"]["done"] > done["progress"]["done"])
    server.post(f"/api/jobs/{running}/stop", {})
    job = server.wait_for(waiting, lambda job: job["state"] in ("finished", "failed"))
    assert job["state"] == "finished", job
    server.end()
    server_errors = errors + sum(times for status, times in statuses.items() if status and status >= 500)
    return {
        "part": "malformed", "by_schemathesis": requests, "by_socket": sum(statuses.values()), "connections": 40_000,
        "server_errors": server_errors, "statuses_by_socket": {str(status): times for status, times in sorted(statuses.items(), key=str)},
        "sizes": sizes, "answers_afterwards_in_s": round(answered, 3),
    }


def slow_bodies(server):
    """A hundred bodies that come a byte at a time, and then no more."""
    peers = []
    for _ in range(100):
        peer = socket.create_connection(server.place, timeout=30)
        peer.sendall(b"POST /api/jobs HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 1000\r\n\r\n")
        peers.append(peer)
    for _ in range(5):
        for peer in peers:
            peer.sendall(b" ")
        time.sleep(0.5)
        assert server.get("/api/state")["signed_in"]
    for peer in peers:
        peer.close()


def schemathesis(program, server, examples):
    """Requests sent, and answers of 500 and above, by the server's own description."""
    report = Path(server.data).parent / f"{Path(server.data).name}.ndjson"
    command = [
        program, "run", f"{server.url}/openapi.json", "-w", "2", "-c", "not_a_server_error", "--max-examples", str(examples), "--seed", "1",
        "--exclude-path", "/api/events", "--report", "ndjson", "--report-ndjson-path", report, "--no-color", "--continue-on-failure",
        "--request-timeout", "60", "--phases", "examples,coverage,fuzzing", "--suppress-health-check", "all",
    ]
    run = subprocess.run(command, capture_output=True, text=True, cwd=report.parent)
    assert report.exists(), run.stdout[-3000:] + run.stderr[-3000:]
    requests, errors = 0, 0
    for line in report.read_text().splitlines():
        for status in statuses_in(json.loads(line)):
            requests += 1
            if status >= 500:
                errors += 1
                print(line[:2000], file=sys.stderr)
    report.unlink()
    return requests, errors


def statuses_in(value):
    """Every status of an answer in an event of the report."""
    if isinstance(value, dict):
        if isinstance(value.get("response"), dict) and isinstance(value["response"].get("status_code"), int):
            yield value["response"]["status_code"]
        for inner in value.values():
            yield from statuses_in(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from statuses_in(inner)


# --- many jobs -------------------------------------------------------------------------------------------------------------------

def jobs(program, count=500):
    server = Server(program)
    photos = penguin(server)
    began, sizes, lists = time.monotonic(), {}, {}
    ids = [server.train(photos, 2) for _ in range(count)]
    for number, job in enumerate(ids, 1):
        end = server.wait_for(job, lambda job: job["state"] in ("finished", "failed"))
        assert end["state"] == "finished", end
        if number in (count // 10, count // 2, count):
            sizes[number] = server.size()
            asked = time.monotonic()
            server.get("/api/jobs")
            lists[number] = round(time.monotonic() - asked, 3)
            print(number, sizes[number], lists[number], file=sys.stderr, flush=True)
    took = time.monotonic() - began
    server.end()
    return {"part": "jobs", "jobs": count, "seconds": round(took), "after": sizes, "list_of_jobs_in_s": lists}


# --- the first picture -----------------------------------------------------------------------------------------------------------

def picture(program):
    sys.path.insert(0, str(Path(__file__).parent.parent / "web"))
    from browser import Visit, browser, open_tab

    times = []
    with browser() as opened:
        for _ in range(3):
            server = Server(program)
            began = time.monotonic()
            visit = Visit(opened, server.url)
            visit.page.get_by_role("tab").first.wait_for()
            shown = time.monotonic()
            open_tab(visit.page, "Try")
            visit.page.get_by_label("Prompt", exact=True).fill("a photo of a bird")
            visit.page.get_by_role("button", name="Draw", exact=True).click()
            drawn = visit.page.get_by_role("list", name="Pictures, newest first").locator("img").first
            drawn.wait_for(timeout=120_000)
            drawn.evaluate("image => image.decode()")
            times.append({"page": shown - began, "picture": time.monotonic() - began})
            visit.close()
            server.end()
    return {"part": "picture", "s": [{name: round(value, 2) for name, value in run.items()} for run in times]}


PARTS = {"streams": streams, "malformed": malformed, "jobs": jobs, "picture": picture}

if __name__ == "__main__":
    if sys.argv[1:2] == ["--read"]:
        read_streams(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    elif len(sys.argv) < 3 or any(part not in PARTS for part in sys.argv[2:]):
        raise SystemExit(__doc__)
    else:
        for part in sys.argv[2:]:
            print(json.dumps(PARTS[part](sys.argv[1])), flush=True)
