"""How long from `polder up` on an imported model to the first streamed token. Goal: under 3 s."""

import json
import os
import pathlib
import signal
import socket
import ssl
import statistics
import subprocess
import tempfile
import time
import urllib.request

ROUNDS = 5


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def once(state):
    began = time.monotonic()
    box = subprocess.Popen(
        [os.environ["POLDER_BIN"], "up", "--yes", "--json", "--state", state, "--port", str(free_port())],
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        up = json.loads(box.stdout.readline())
        ready = time.monotonic() - began
        body = {"model": up["model"], "stream": True, "max_tokens": 4,
                "messages": [{"role": "user", "content": "Say hello."}]}
        request = urllib.request.Request(
            up["url"] + "/v1/chat/completions", json.dumps(body).encode(),
            {"authorization": "Bearer " + up["api_key"], "content-type": "application/json"})
        trust = ssl.create_default_context(cafile=up["ca_file"])
        with urllib.request.urlopen(request, context=trust) as answer:
            for line in answer:
                if line.startswith(b"data: ") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                    return ready, time.monotonic() - began
        raise SystemExit("the box answered no token")
    finally:
        box.send_signal(signal.SIGTERM)
        box.wait(60)


with tempfile.TemporaryDirectory() as state:
    subprocess.run([os.environ["POLDER_BIN"], "weights", "import", "smollm2-135m-instruct",
                    "--from", os.environ["POLDER_SMOLLM2_FOLDER"], "--state", state], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert pathlib.Path(state, "weights").is_dir()
    times = [once(state) for _ in range(ROUNDS + 1)][1:]
ready, token = (statistics.median(t[i] for t in times) for i in (0, 1))
print(f"\nstart: `polder up` to ready {ready:.2f} s, to the first token {token:.2f} s "
      f"(median of {ROUNDS}; goal 3 s: {token / 3:.2f} of it)")
