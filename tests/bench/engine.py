"""Polder's CPU engine beside llama.cpp: same GGUF, same threads, rounds in turn.

Decode: one sequence, 64 tokens after a prompt of 32. Prefill: a prompt of 512 tokens. Each round is
a fresh process that takes its best of three, for both.
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
PROMPT, DECODE, BEST_OF = 512, 64, 3


def llama():
    import llama_cpp

    quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)
    llama_cpp.llama_log_set(quiet, None)
    model = llama_cpp.Llama(os.environ["POLDER_SMOLLM2"], n_ctx=2048, n_batch=PROMPT, n_threads=THREADS,
                            n_threads_batch=THREADS, verbose=False)
    prompt = [1000 + i for i in range(PROMPT)]
    decode = prefill = 0.0
    for _ in range(BEST_OF):
        model.reset()
        model.eval(prompt[:32])
        began = time.monotonic()
        for token in prompt[:DECODE]:
            model.eval([token])
        decode = max(decode, DECODE / (time.monotonic() - began))
        model.reset()
        began = time.monotonic()
        model.eval(prompt)
        prefill = max(prefill, PROMPT / (time.monotonic() - began))
    print(json.dumps({"prefill": prefill, "decode": decode}))


def polder():
    found = subprocess.run(["cargo", "bench", "--locked", "-q", "-p", "polder-backend-cpu", "--bench", "decode"],
                           stdout=subprocess.PIPE, text=True, check=True,
                           env=os.environ | {"POLDER_THREADS": str(THREADS)})
    lines = [json.loads(line) for line in found.stdout.splitlines() if line.startswith("{")]
    rate = {(line["what"], line.get("batch")): line.get("tokens_per_second") for line in lines}
    return {"prefill": rate["prefill", 512], "decode": rate["decode", 1], "decode of 8": rate["decode", 8]}


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
eight = statistics.median(r[0]["decode of 8"] for r in rounds)
print(f"{'decode of 8':<12}{eight:>14.1f}{'(all sequences together)':>26}")
size = pathlib.Path(os.environ["POLDER_SMOLLM2"]).stat().st_size
decode = statistics.median(r[0]["decode"] for r in rounds)
print(f"decode reads {size / 1e6:.0f} MB a token: {decode * size / 1e9:.2f} GB/s")
