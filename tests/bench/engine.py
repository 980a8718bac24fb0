"""Polder's CPU engine beside llama.cpp: same GGUF, same threads, rounds in turn.

Decode: one sequence, tokens per second. Prefill: a 512-token prompt, tokens per second.
"""

import ctypes
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROUNDS = 5
THREADS = os.cpu_count()
PROMPT, DECODE = 512, 64


def llama():
    import llama_cpp

    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    llama_cpp.llama_log_set(quiet, None)
    model = llama_cpp.Llama(os.environ["POLDER_SMOLLM2"], n_ctx=2048, n_batch=PROMPT, n_threads=THREADS,
                            n_threads_batch=THREADS, verbose=False)
    prompt = [(i * 37) % 40000 + 1000 for i in range(PROMPT)]
    model.eval(prompt[:32])  # warm
    model.reset()
    began = time.monotonic()
    model.eval(prompt)
    prefill = PROMPT / (time.monotonic() - began)
    token = prompt[0]
    began = time.monotonic()
    for _ in range(DECODE):
        model.eval([token])
    decode = DECODE / (time.monotonic() - began)
    print(json.dumps({"prefill": prefill, "decode": decode}))


def polder():
    """The bench binary of polder-backend-cpu prints one JSON line with both figures."""
    found = subprocess.run(
        ["cargo", "bench", "--locked", "-q", "-p", "polder-backend-cpu", "--bench", "decode", "--",
         "--prompt", str(PROMPT), "--decode", str(DECODE), "--threads", str(THREADS)],
        stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(found.stdout.strip().splitlines()[-1])


if sys.argv[1:] == ["llama"]:
    llama()
    sys.exit()

rounds = []
for _ in range(ROUNDS):
    ours = polder()
    theirs = json.loads(subprocess.run([sys.executable, __file__, "llama"], stdout=subprocess.PIPE, text=True,
                                       check=True).stdout)
    rounds.append((ours, theirs))

print(f"\nengine: SmolLM2 135M Q4_1, {THREADS} threads, median of {ROUNDS} rounds in turn")
print(f"{'':<12}{'polder tok/s':>14}{'llama.cpp tok/s':>18}{'ratio':>8}")
for what in ("prefill", "decode"):
    ours, theirs = (statistics.median(r[i][what] for r in rounds) for i in (0, 1))
    ratio = statistics.median(r[0][what] / r[1][what] for r in rounds)
    print(f"{what:<12}{ours:>14.1f}{theirs:>18.1f}{ratio:>8.2f}")
size = pathlib.Path(os.environ["POLDER_SMOLLM2"]).stat().st_size
decode = statistics.median(r[0]["decode"] for r in rounds)
print(f"decode reads {size / 1e6:.0f} MB a token: {decode * size / 1e9:.2f} GB/s")
