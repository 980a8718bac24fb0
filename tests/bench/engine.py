"""Polder's CPU engine beside llama.cpp's server: one table, from one run on one machine.

Same GGUF, same cores, same layout: one server process each, HTTP and SSE over a Unix socket, one client that sends both the
same tokens. Every figure is taken in rounds in turn, first one and then the other, and a ratio is the median of the rounds'
ratios, so that what else the machine does hits both. `POLDER_BENCH_ROUNDS` says how many.

Called by `make bench-engine`, which first runs the tests that compare with the goldens: a build that answers wrongly has no speed.
"""

import contextlib
import http.client
import json
import os
import pathlib
import random
import selectors
import signal
import socket
import statistics
import subprocess
import tempfile
import time

ROUNDS = int(os.environ.get("POLDER_BENCH_ROUNDS", "5"))
GGUF = os.environ["POLDER_SMOLLM2"]
CORES = len(os.sched_getaffinity(0))
# Sampled by each stream of a decode round.
DECODE = 64
# A small model's likeliest words go round in circles, and Polder guesses what repeats: fast, and no measure of a step. What
# is drawn does not repeat.
DRAWN = {"temperature": 1, "top_k": 40, "top_p": 0.95, "min_p": 0.05}
GREEDY = {"temperature": 0}
STREAMS, CONTEXTS, PROMPTS = (1, 4, 8), (128, 2048), (512, 4096)
# A conversation's first prompt, and what is new in the next one.
HISTORY, NEW = 3072, 64
# Positions of one sequence: the longest prompt and what is sampled after it.
ROOM = 4608


class Server:
    """A process that serves the model on `path`."""

    def __init__(self, name, path, command):
        self.name, self.path = name, str(path)
        self.began = time.monotonic()
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def peak(self):
        """Most megabytes that were ever in memory."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1000

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


def polder(folder):
    state = pathlib.Path(folder, "box")
    if not state.exists():
        subprocess.run([os.environ["POLDER_BIN"], "weights", "import", "smollm2-135m-instruct", "--from",
                        os.environ["POLDER_SMOLLM2_FOLDER"], "--state", state], check=True,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        (state / "site.toml").write_text('format = 1\nname = "bench"\n[door]\nport = 1\nlisten = ["127.0.0.1"]\n'
                                         '[engines.fast]\nrecipe = "smollm2-135m-instruct"\n')
    path = state / "run" / "engine-fast" / "sock"
    path.unlink(missing_ok=True)
    return Server("polder", path, [os.environ["POLDER_BIN"], "engine", "fast", "--state", state])


def llama(folder, slots):
    path = pathlib.Path(folder, "llama.sock")
    path.unlink(missing_ok=True)
    # Nothing is kept beside the slots: else it would copy what they held before each new prompt.
    return Server("llama.cpp", path, [os.environ["POLDER_LLAMA_SERVER"], "-m", GGUF, "--host", path,
                                      "-t", str(CORES), "-tb", str(CORES), "-np", str(slots), "--no-kv-unified",
                                      "-c", str(ROOM * slots), "--cache-ram", "0"])


def connect(server):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(server.path)
    return connection


class Stream:
    """One answer as it comes: when which events came."""

    def __init__(self, server, tokens, count, slot, sampling=GREEDY):
        # `id_slot` is llama.cpp's: the slot that holds this stream's history. Polder finds that by itself.
        body = json.dumps({"prompt": tokens, "max_tokens": count, "stream": True, "ignore_eos": True,
                           "model": "smollm2-135m-instruct", "id_slot": slot, "seed": slot + 1, **sampling}).encode()
        self.connection = connect(server)
        head = (f"POST /v1/completions HTTP/1.1\r\nhost: engine\r\ncontent-type: application/json\r\n"
                f"x-polder-member: member-{slot}\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n")
        self.began = time.monotonic()
        self.connection.sendall(head.encode() + body)
        self.seen, self.searched, self.events, self.text = b"", 0, [], ""

    def take(self):
        """Whether there is more to come."""
        piece = self.connection.recv(1 << 16)
        now = time.monotonic()
        if not piece:
            self.connection.close()
            self.text = self.seen.decode(errors="replace")
            if "[DONE]" not in self.text:
                raise RuntimeError(self.text[:400])
            return False
        self.seen += piece
        found = self.seen.count(b"data: {", self.searched)
        self.events += [now] * found
        # What may be the beginning of the next one is looked at again.
        self.searched = max(self.searched, len(self.seen) - len(b"data: {") + 1) if found == 0 else \
            self.seen.rindex(b"data: {") + len(b"data: {")
        return True


    def finish(self):
        while self.take():
            pass
        return self

    def waited(self):
        """Seconds until the first token."""
        return self.events[0] - self.began


def first_token(server, prompt):
    return Stream(server, prompt, 1, 0).finish().waited()


def decode_rate(server, prompts, sampling):
    """Tokens per second of all streams, from when each has begun to the last one's end. Their prompts are known."""
    streams = [Stream(server, prompt, DECODE, slot, sampling) for slot, prompt in enumerate(prompts)]
    with selectors.DefaultSelector() as ready:
        for stream in streams:
            ready.register(stream.connection, selectors.EVENT_READ, stream)
        while ready.get_map():
            for key, _ in ready.select():
                if not key.data.take():
                    ready.unregister(key.fd)
    begun = max(stream.events[0] for stream in streams)
    end = max(stream.events[-1] for stream in streams)
    # An event may hold several tokens, where a character was not whole: an event's share of the tokens is what counts.
    tokens = sum(DECODE * sum(at > begun for at in s.events) / len(s.events) for s in streams)
    return tokens / (end - begun)


def wait(server):
    """Until it has answered: seconds from the start of the process to the first token."""
    while server.process.poll() is None:
        with contextlib.suppress(OSError, RuntimeError):
            return Stream(server, [504, 253, 2347, 282], 1, 0).finish().events[0] - server.began
        time.sleep(0.002)
    raise SystemExit(f"{server.name} did not start")


def text_tokens(server):
    """Some hundred thousand tokens of prose: what this repository says about itself."""
    text = "\n".join(path.read_text() for path in sorted(pathlib.Path(".").rglob("*.md")) if "target" not in path.parts)
    connection = http.client.HTTPConnection("engine")
    connection.sock = connect(server)
    connection.request("POST", "/tokenize", json.dumps({"prompt": text, "add_special_tokens": False}),
                       {"content-type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    return answer["tokens"]


def row(what, ours, theirs, unit, goal=None, less_is_better=False):
    """One line: figures of each round for both. A ratio above 1 is ours being better."""
    ratio = statistics.median(b / a if less_is_better else a / b for a, b in zip(ours, theirs))
    a, b = (f"{m:.0f}" if m >= 100 else f"{m:.1f}" if m >= 10 else f"{m:.3f}" for m in map(statistics.median, (ours, theirs)))
    print(f"| {what} | {a} | {b} | {unit} | {ratio:.2f} | {verdict(ratio, goal)} |", flush=True)


def verdict(ratio, goal):
    return "" if goal is None else f"{goal}: {'met' if ratio >= goal else 'MISSED'}"


def machine():
    about = dict(line.split(":", 1) for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if ":" in line)
    about = {key.strip(): value.strip() for key, value in about.items()}
    flags = about.get("flags", about.get("Features", "")).split()
    wanted = [f for f in flags if f.startswith(("avx", "amx", "fma", "f16c", "asimd", "i8mm", "bf16", "sve"))]
    print(f"{about.get('model name', os.uname().machine)}, {CORES} cores; {' '.join(wanted)}")


def in_turn(measure, servers):
    """`measure(server, round)` for every server in every round; who comes first changes. One round before that counts nothing."""
    found = {server.name: [] for server in servers}
    for n in range(ROUNDS + 1):
        for server in servers if n % 2 else servers[::-1]:
            figure = measure(server, n)
            if n:
                found[server.name].append(figure)
    return [found[server.name] for server in servers]


def conversation(make, arguments, folder, history, new):
    """A process of its own: how long it took to start, to read a history, to go on with it; and its memory then."""
    server = make(folder, *arguments)
    try:
        return wait(server), first_token(server, history), first_token(server, history + new), server.peak()
    finally:
        server.stop()


def main():
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        servers = [polder(folder), llama(folder, max(STREAMS))]
        for server in servers:
            stack.callback(server.stop)
            wait(server)
        prose = text_tokens(servers[0])
        chance = random.Random(1)

        def prompts(count, length):
            """Never the same beginning twice."""
            starts = chance.sample(range(len(prose) - length), count)
            return [prose[at:at + length] for at in starts]

        print(f"\n{pathlib.Path(GGUF).name}, {CORES} threads each, medians of {ROUNDS} rounds in turn")
        machine()
        print("\n| | polder | llama.cpp | | ratio | goal |\n|---|---|---|---|---|---|")
        for length in CONTEXTS:
            for streams in STREAMS:
                histories = prompts(streams, length)
                for server in servers:
                    for slot, history in enumerate(histories):
                        Stream(server, history, 1, slot).finish()
                rates = in_turn(lambda server, _: decode_rate(server, histories, DRAWN), servers)
                row(f"decode, {streams} at {length}", *rates, "tok/s", {1: 1.15, 8: 1.5}.get(streams))
            rates = in_turn(lambda server, _: decode_rate(server, histories[:1], GREEDY), servers)
            row(f"decode, 1 at {length}, greedy: text that repeats, guessed", *rates, "tok/s")
        for length in PROMPTS:
            rounds = [prompts(1, length)[0] for _ in range(ROUNDS + 1)]
            rates = in_turn(lambda server, n: length / first_token(server, rounds[n]), servers)
            row(f"prefill of {length}", *rates, "tok/s", 1.0)
        stack.close()

        found = {polder: [], llama: []}
        for n in range(ROUNDS):
            history, new = prompts(1, HISTORY)[0], prompts(1, NEW)[0]
            makers = [(polder, ()), (llama, (1,))]
            for make, arguments in makers if n % 2 else makers[::-1]:
                found[make].append(conversation(make, arguments, folder, history, new))
        starts, colds, seconds, peaks = zip(*(zip(*found[make]) for make in (polder, llama)))
        row(f"first token, {HISTORY} new tokens", *colds, "s", less_is_better=True)
        row(f"first token of a second turn, {NEW} new tokens after {HISTORY}", *seconds, "s", less_is_better=True)
        gains = [[cold / second for cold, second in zip(*pair)] for pair in zip(colds, seconds)]
        row("the second turn against the cold one", *gains, "times")
        row("start to first token", *starts, "s", less_is_better=True)
        row("most memory, after the second turn", *peaks, "MB", less_is_better=True)
        gain, start = statistics.median(gains[0]), statistics.median(starts[0])
        print(f"\nsecond turn {gain:.0f} times as fast as a cold one, goal {verdict(gain, 10)}; "
              f"start {start:.2f} s, goal under 1 s: {'met' if start < 1 else 'MISSED'}")


main()
