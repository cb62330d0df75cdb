"""Verdicts a second: multiple choice in one process, mathematics through the pool of workers.

    python benchmarks/grading.py [--seconds 5]

Two numbers for mathematics: answers as in MATH-500 (two thirds are plain numbers, which need no worker), and
expressions only, no two alike, so that nothing is remembered from an earlier case.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from random import Random

from xreasoner.grading import judge
from xreasoner.problem import LABELS, Problem

THOUGHT = "<think> " + "The deflection points to a negative charge, so A does not fit. " * 40 + "</think> "
FORMS = ("<answer>{0}: {1}</answer>", "The answer is ({0}).", "\\boxed{{{0}}}", "**Answer: {0}**\n\nNot {2}.", "{1}")
EXPRESSIONS = (
    "\\frac{{{a}x+{b}}}{{{c}}}",
    "\\sqrt{{{a}}}+{b}",
    "{a}\\pi-{b}",
    "x^2+{a}x-{b}",
    "({a},{b}\\sqrt{{{c}}})",
    "{a}e^{{{b}}}",
)


def choice(random: Random) -> tuple[Problem, str]:
    options = tuple(f"option number {random.randrange(10**6)}" for _ in range(random.randint(2, 10)))
    gold, other = random.randrange(len(options)), random.randrange(len(options))
    reply = THOUGHT + random.choice(FORMS).format(LABELS[gold], options[gold], LABELS[other])
    return Problem("p", "Which?", LABELS[gold], "choice", options), reply


def mathematical(random: Random, numbers: float) -> tuple[Problem, str]:
    a, b, c = (random.randint(2, 10**4) for _ in range(3))
    if random.random() < numbers:
        return Problem("p", "?", str(a), "latex"), f"{THOUGHT}\\boxed{{{a}}}"
    form = random.choice(EXPRESSIONS)
    gold, said = form.format(a=a, b=b, c=c), form.format(a=f"\\frac{{{2 * a}}}{{2}}", b=b, c=c)
    return Problem("p", "?", gold, "latex"), f"{THOUGHT}\\boxed{{{said}}}"


def rate(make: Callable[[Random], tuple[Problem, str]], seconds: float, threads: int) -> float:
    """Verdicts a second on the clock; cases are made beforehand."""
    random = Random(0)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(lambda case: judge(*case), [make(random) for _ in range(32)]))  # start the workers
        done, begin = 0, time.perf_counter()
        spent = 0.0
        while spent < seconds:
            cases = [make(random) for _ in range(400)]
            begin = time.perf_counter()
            list(pool.map(lambda case: judge(*case), cases)) if threads > 1 else [judge(*case) for case in cases]
            spent += time.perf_counter() - begin
            done += len(cases)
    return done / spent


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=5.0)
    seconds = parser.parse_args().seconds
    print(f"{os.cpu_count()} cores")
    print(f"multiple choice, one thread        {rate(choice, seconds, 1):8.0f} verdicts/s")
    print(f"mathematics, as in MATH-500        {rate(lambda r: mathematical(r, 0.67), seconds, 8):8.0f} verdicts/s")
    print(f"mathematics, expressions only      {rate(lambda r: mathematical(r, 0.0), seconds, 8):8.0f} verdicts/s")


if __name__ == "__main__":
    main()
