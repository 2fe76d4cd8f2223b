"""What the scripts here share: a client that phones nobody, and waiting."""
import os, tempfile, time

os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

from gradio_client import Client

OPTIONS = {"lora_r": 2, "train_batch_size": 1, "mixed_precision": "no", "validation_prompt": "", "seed": 3}


def connect(url, **more):
    return Client(url, verbose=False, download_files=tempfile.mkdtemp(), **more)


def wait_for(what, most=60):
    """What `what` gives, once that is something."""
    end = time.time() + most
    while time.time() < end:
        found = what()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f"waited {most} s in vain")


def refusal(call):
    """The sentence that a call is refused with."""
    try:
        given = call()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError(f"was not refused: {given}")


def state_of(client, run):
    return next((state for state in client.predict(api_name="/runs") if state["run"] == run), {})


def first_run(job):
    """The name of the run that a training began."""
    return wait_for(lambda: job.outputs())[0][0]
