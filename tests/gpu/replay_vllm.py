"""Plays a trace of `replay --write` against vLLM in this process, and prints the table that `replay` prints.

usage: replay_vllm.py TRACE MODEL_FOLDER [--modes 2048:0:fcfs,512:256:priority] [--agents 2,4,8] [--seconds 25] [--warm 40]
       [--kv fp8] [--offload-gib 0] [--limit 200] [--first-bound 1.0] [--gap-bound 0.05] [--randomise bench.py]

A mode is vLLM's most tokens in a step, its most tokens of one long prompt in a step (0: no bound), and whether those who chat
have priority. Prompts are tokens, prefixes are cached, answers are as long as the trace says. Nobody asks by the clock: who has an
answer asks the next thing after a pause. With `--limit`, no number of agents is begun after so many seconds.
"""

import argparse
import asyncio
import importlib.util
import json
import math
import os
import random
import time

os.environ.setdefault("VLLM_ALLOW_INSECURE_SERIALIZATION", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_WORKER_MULTIPROCESSING_METHOD", "fork")
BEGAN = time.monotonic()


def percentile(values, part):
    """The smallest value that such a part of all values does not exceed."""
    return sorted(values)[max(math.ceil(len(values) * part), 1) - 1] if values else float("nan")


class Speaker:
    def __init__(self, name, agent):
        self.name, self.agent, self.says, self.at = name, agent, [], 0
        self.text, self.chance, self.task, self.answered = [], random.Random(name), None, 0


class Seen:
    """What was seen between two moments; what happens outside of them is not counted."""

    def __init__(self):
        self.first, self.gaps = {True: [], False: []}, {True: [], False: []}
        self.calls = self.asked = self.known = 0

    def row(self, mode, agents, seconds, bounds):
        gaps = self.gaps[False]
        holds = percentile(self.first[False], 0.95) <= bounds[0] and percentile(gaps, 0.99) <= bounds[1]
        everyone = holds and percentile(gaps + self.gaps[True], 0.99) <= bounds[1]
        first, others = self.first[False], self.first[True]
        return (f"| {mode} | {agents} | {percentile(first, .5):.2f} / {percentile(first, .95):.2f} | {len(first)} "
                f"| {percentile(gaps, .5) * 1e3:.1f} / {percentile(gaps, .99) * 1e3:.1f} "
                f"| {percentile(others, .5):.2f} / {percentile(others, .95):.2f} "
                f"| {percentile(self.gaps[True], .99) * 1e3:.1f} | {self.calls / seconds * 60:.1f} "
                f"| {self.known / max(self.asked, 1) * 100:.1f} % | {'yes' if holds else 'no'} | {'yes' if everyone else 'no'} |")


class Play:
    def __init__(self, engine, says):
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        self.engine, self.number, self.seen, self.priority = engine, 0, Seen(), False
        self.tokens_input = tokens_input
        self.sampling = lambda count: SamplingParams(temperature=0.0, max_tokens=count, ignore_eos=True, detokenize=False,
                                                     output_kind=RequestOutputKind.DELTA)
        commons = random.Random("common")
        self.common = {agent: [commons.randrange(150000) for _ in range(20000)] for agent in (True, False)}
        self.speakers = {}
        for say in says:
            self.speakers.setdefault(say["who"], Speaker(say["who"], say["agent"])).says.append(say)

    async def speak(self, speaker):
        while True:
            say = speaker.says[speaker.at % len(speaker.says)]
            await asyncio.sleep(say["pause_ms"] / 1e3)
            if say["opens"] is not None:
                speaker.text = self.common[speaker.agent][:say["opens"]]
            speaker.text = speaker.text + [speaker.chance.randrange(150000) for _ in range(say["new"])]
            self.number += 1
            asked = time.perf_counter()
            speaker.waits_since, last = asked, None
            prompt = self.tokens_input(list(speaker.text))
            answers = self.engine.generate(prompt, self.sampling(say["answer"]), f"r{self.number}",
                                           priority=int(self.priority and speaker.agent))
            async for output in answers:
                ids = output.outputs[0].token_ids
                if not len(ids):
                    continue
                now = time.perf_counter()
                if last is None:
                    speaker.waits_since = None
                    self.seen.first[speaker.agent].append(now - asked)
                    if speaker.agent:
                        self.seen.asked += len(speaker.text)
                        self.seen.known += output.num_cached_tokens or 0
                else:
                    self.seen.gaps[speaker.agent].append(now - last)
                    self.seen.gaps[speaker.agent].extend([0.0] * (len(ids) - 1))
                last = now
                speaker.text.extend(ids)
            self.seen.calls += speaker.agent
            speaker.answered += 1
            speaker.at += 1

    def gather(self, agents):
        """So many agents are there from now on, and everybody who chats."""
        place = 0
        for speaker in self.speakers.values():
            present = not speaker.agent or place < agents
            place += speaker.agent
            if present and speaker.task is None:
                speaker.answered, speaker.waits_since = 0, None
                speaker.task = asyncio.create_task(self.speak(speaker))
            if not present and speaker.task is not None:
                speaker.task.cancel()
                speaker.task = None

    def present(self):
        for speaker in self.speakers.values():
            if speaker.task is not None:
                if speaker.task.done():
                    speaker.task.result()
                yield speaker

    async def warm_up(self, most):
        until = time.monotonic() + most
        while time.monotonic() < until and any(s.agent and not s.answered for s in self.present()):
            await asyncio.sleep(0.2)

    async def watch(self, seconds, bound):
        self.seen = Seen()
        await asyncio.sleep(seconds)
        seen, self.seen = self.seen, Seen()
        # Who still waits, and has waited too long already, was not served well.
        for speaker in self.present():
            if speaker.waits_since is not None and (waited := time.perf_counter() - speaker.waits_since) > bound:
                seen.first[speaker.agent].append(waited)
        return seen


def set_mode(core, most, of_one):
    """In the engine's process: its scheduler reads both before every step."""
    core.scheduler.max_num_scheduled_tokens = most
    core.scheduler.scheduler_config.long_prefill_token_threshold = of_one


async def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("trace")
    parser.add_argument("model")
    parser.add_argument("--modes", default="2048:0:fcfs,512:0:fcfs,512:256:priority,256:128:priority")
    parser.add_argument("--agents", default="2,4,8")
    for name, default in (("seconds", 25.0), ("warm", 40.0), ("limit", 200.0), ("offload-gib", 0.0), ("first-bound", 1.0),
                          ("gap-bound", 0.05), ("memory", 0.92)):
        parser.add_argument("--" + name, type=float, default=default)
    parser.add_argument("--kv", default="fp8")
    parser.add_argument("--step", type=int, default=8192, help="most tokens in a step that memory is planned for")
    parser.add_argument("--randomise", help="a Python file with `randomise(model)`, for weights that are drawn")
    asked = parser.parse_args()

    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core import EngineCore
    # The engine's process is a fork of this one.
    EngineCore.set_mode = set_mode
    more = {"kv_offloading_size": asked.offload_gib} if asked.offload_gib else {}
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(
        model=asked.model, load_format="dummy", skip_tokenizer_init=True, max_model_len=200_000,
        hf_overrides={"max_position_embeddings": 262_144}, kv_cache_dtype=asked.kv, enable_prefix_caching=True, max_num_seqs=64,
        max_num_batched_tokens=asked.step, gpu_memory_utilization=asked.memory, scheduling_policy="priority", **more))
    if asked.randomise:
        spec = importlib.util.spec_from_file_location("drawn", asked.randomise)
        drawn = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(drawn)
        # By value: the engine's process knows no such module.
        drawn.randomise.__module__ = "__main__"
        await engine.collective_rpc("apply_model", args=(drawn.randomise,))
    config = engine.vllm_config.cache_config
    print(f"vLLM, {asked.kv} KV, room for {(config.num_gpu_blocks or 0) * config.block_size} positions, "
          f"{asked.offload_gib:.0f} GiB of host memory; {time.monotonic() - BEGAN:.0f} s to start\n", flush=True)
    print("| vLLM's step : of one prompt : order | agents | chat TTFT p50 / p95 s | of | chat ITL p50 / p99 ms | agents' TTFT p50 / p95 s "
          "| agents' ITL p99 ms | calls/min | known | chats hold | all ITL too |\n|---|---|---|---|---|---|---|---|---|---|---|", flush=True)
    with open(asked.trace) as lines:
        play = Play(engine, [json.loads(line) for line in lines])
    bounds = (asked.first_bound, asked.gap_bound)
    for agents in [int(n) for n in asked.agents.split(",")]:
        for mode in asked.modes.split(","):
            if time.monotonic() - BEGAN > asked.limit:
                print("out of time", flush=True)
                break
            most, of_one, order = mode.split(":")
            await engine.engine_core.call_utility_async("set_mode", int(most), int(of_one))
            play.priority = order == "priority"
            play.gather(agents)
            await play.warm_up(asked.warm)
            await asyncio.sleep(2)
            seen = await play.watch(asked.seconds, asked.first_bound)
            print(seen.row(mode, agents, asked.seconds, bounds), flush=True)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(main())
