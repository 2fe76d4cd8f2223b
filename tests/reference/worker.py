"""Runs the scripts of this folder one after another in one process, so that the libraries are imported once.

A request is a line on stdin, {"script": "models.py", "args": [...]}; its answer is a line on stdout, {"error": null} or what was
printed and raised. It ends when stdin does. A script's own prints never reach stdout.
"""

import contextlib
import io
import json
import os
import runpy
import sys
import traceback
from pathlib import Path

import torch  # noqa: F401  first, as it is what takes long

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
here = Path(__file__).parent
sys.path.insert(0, str(here))

for line in sys.stdin:
    request = json.loads(line)
    sys.argv = [request["script"], *request["args"]]
    printed, error = io.StringIO(), None
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            runpy.run_path(str(here / request["script"]), run_name="__main__")
    except SystemExit as exit:
        error = None if exit.code in (None, 0) else f"{printed.getvalue()}exit {exit.code}"
    except BaseException:
        error = printed.getvalue() + traceback.format_exc()
    answers.write(json.dumps({"error": error}) + "\n")
    answers.flush()
