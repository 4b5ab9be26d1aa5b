"""Try one model from many sides: eight threads, two asyncio tasks and half-read streams; then Ctrl-C at random moments.

    python tools/shared_model.py users
    python tools/shared_model.py interrupts MODEL[,FLAG=VALUE...] ...

`users`: 200 texts of the demo model, each compared with what it is alone, and the speed of a second thread beside the
main one's. `interrupts`: 30 times for each model, a Ctrl-C 0 to 100 ms after a text was begun; then its first 40 greedy
tokens have to be those from before. FLAG is one of `hybrid.load`, as in "DIR,device=simulated,cuda=2MiB".
"""

import argparse
import asyncio
import os
import random
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from typing import Any

from hybrid import TextModel, load

PROMPTS = ("Once upon a time", "The cat", "A big dog", "She was", "One day the bird", "He said")
TOKENS = 48
THREADS, TASKS, TEXTS, INTERRUPTS = 8, 2, 20, 30  # texts of each user; interruptions of each model
LONGEST_S = 0.1


def users(model: TextModel) -> None:
    """Compare texts of many users with those of one alone, and print how many differ."""
    alone = {prompt: model.generate(prompt, max_tokens=TOKENS) for prompt in PROMPTS}

    def differing(first: int, count: int) -> int:
        wrong = 0
        for number in range(count):
            prompt = PROMPTS[(first + number) % len(PROMPTS)]
            pieces = (
                model.stream(prompt, max_tokens=TOKENS) if number % 2 else model.generate(prompt, max_tokens=TOKENS)
            )
            wrong += "".join(pieces) != alone[prompt]
        return wrong

    async def task(first: int) -> int:
        wrong = 0
        for number in range(TEXTS // 2):
            prompt, pieces = PROMPTS[(first + number) % len(PROMPTS)], []
            for piece in model.stream(prompt, max_tokens=TOKENS):
                pieces.append(piece)
                await asyncio.sleep(0)
            wrong += "".join(pieces) != alone[prompt]
        return wrong + await asyncio.to_thread(differing, first, TEXTS // 2)

    async def tasks() -> list[int]:
        return await asyncio.gather(*(task(number) for number in range(TASKS)))

    began_s = time.perf_counter()
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(differing, number, TEXTS) for number in range(THREADS)]
        wrong = sum(asyncio.run(tasks())) + sum(future.result() for future in futures)
    texts, elapsed_s = (THREADS + TASKS) * TEXTS, time.perf_counter() - began_s
    print(f"{texts} texts of {THREADS} threads and {TASKS} tasks in {elapsed_s:.1f} s: {wrong} differ")


def speed(model: TextModel) -> None:
    """Time texts in the main thread and in a second one, by turns."""

    def text_s() -> float:
        began_s = time.perf_counter()
        model.generate(PROMPTS[0], max_tokens=100, temperature=1.0, seed=1)
        return time.perf_counter() - began_s

    text_s()
    times: list[tuple[float, float]] = []
    for _ in range(15):
        with ThreadPoolExecutor(1) as pool:
            times.append((text_s(), pool.submit(text_s).result()))
    ratio = median(second / first for first, second in times)
    print(f"time in a second thread / in the main one: {ratio:.3f} (median of {len(times)} pairs)")


def interrupts(path: str, flags: dict[str, Any], seed: int = 1) -> None:
    """Interrupt texts of one model at random moments, and print how often its tokens were others afterwards."""
    chance, wrong, hits = random.Random(seed), 0, 0
    with load(path, context_tokens=128, **flags) as model:
        expected = model.generate(PROMPTS[0], max_tokens=40)
        for number in range(INTERRUPTS):
            timer = threading.Timer(chance.uniform(0, LONGEST_S), os.kill, (os.getpid(), signal.SIGINT))
            try:
                timer.start()
                while timer.is_alive():
                    model.generate(PROMPTS[number % len(PROMPTS)] * (1 + number % 5), max_tokens=60)
                timer.join()
                time.sleep(1)  # the signal is on its way
            except KeyboardInterrupt:
                hits += 1
            wrong += model.generate(PROMPTS[0], max_tokens=40) != expected
    print(f"{path} {flags}: {hits} interruptions, other tokens afterwards {wrong} times")


def main() -> None:
    """Run what the arguments say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("users", "interrupts"))
    parser.add_argument("models", nargs="*")
    arguments = parser.parse_args()
    if arguments.what == "users":
        with load(context_tokens=192) as model:
            users(model)
            speed(model)
    for model_and_flags in arguments.models:
        path, *flags = model_and_flags.split(",")
        interrupts(path, dict(flag.split("=", 1) for flag in flags))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
