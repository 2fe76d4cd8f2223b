"""Runs the scripts of this folder one after another in one process, so that the libraries are imported once for many tests.

worker.py NAME listens on the abstract Unix socket NAME. A connection brings one line, {"script": "models.py", "args": [...]}, and gets one,
{"error": null} or what was printed and raised. The process ends by itself when nobody has asked for a while.
"""

import contextlib
import io
import json
import os
import runpy
import socket
import sys
import traceback
from pathlib import Path

IDLE_SECONDS = 60

listener = socket.socket(socket.AF_UNIX)
try:
    listener.bind(f"\0{sys.argv[1]}")
except OSError:
    sys.exit(0)  # another one has the name, and serves as well
listener.listen(64)
listener.settimeout(IDLE_SECONDS)

import torch  # noqa: E402, F401  first of the libraries, as it is what takes long; who asks meanwhile waits for the answer

# Whoever started this may wait for the end of its own output.
quiet = os.open(os.devnull, os.O_RDWR)
os.dup2(quiet, 1)
os.dup2(quiet, 2)
here = Path(__file__).parent
sys.path.insert(0, str(here))


def run(request):
    sys.argv = [request["script"], *request["args"]]
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            runpy.run_path(str(here / request["script"]), run_name="__main__")
    except SystemExit as exit:
        return None if exit.code in (None, 0) else f"{printed.getvalue()}exit {exit.code}"
    except BaseException:
        return printed.getvalue() + traceback.format_exc()
    return None


while True:
    try:
        connection, _ = listener.accept()
    except TimeoutError:
        break
    with connection, connection.makefile("rw") as lines:
        connection.settimeout(None)
        # The test may have gone before it asked, or before it is answered.
        if request := lines.readline():
            answer = {"error": run(json.loads(request))}
            with contextlib.suppress(OSError):
                lines.write(json.dumps(answer) + "\n")
                lines.flush()
