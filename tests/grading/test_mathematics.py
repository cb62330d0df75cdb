"""Mathematical answers: what is equal, what math-verify would call equal and is not, and workers that can be killed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from xreasoner.grading import judge, mathematics
from xreasoner.grading.math_worker import compare
from xreasoner.problem import Problem

POISON = "9^{9^{9^{9}}}"


def latex(text: str, gold: str) -> str:
    return judge(Problem("p", "?", gold, "latex"), text).outcome


@pytest.mark.parametrize(
    ("gold", "given", "sameness"),
    [
        ("x/2", r"\frac{x}{2}", "equal"),
        (r"\frac{6}{2}\pi", r"3\pi", "equal"),
        (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}", "different"),
        (r"1 - \frac{1}{e}", "1", "different"),
        ("x + y = 1", "x - y = 3", "different"),
        ("x + y = 1", "2x + 2y = 2", "equal"),
        ("5", r"4 \text{ or } 5", "different"),
        ("(0,1]", "(0, 1]", "equal"),
        ("(0,1]", "[0, 1)", "different"),
        (r"\{1, 2\}", "2, 1", "equal"),
        (r"\{1, 1, 2\}", r"\{1, 2\}", "different"),
        (r"x^2 + 1", r"\frac{", "unparsed"),
        (r"x^2 + 1", r"4\sqrt(2)", "unparsed"),
        (r"10^{100} + \pi", r"10^{100} + e", "different"),
        ("12:30", "12:3", "different"),
    ],
)
def test_sameness(gold: str, given: str, sameness: str) -> None:
    assert compare(gold, given) == sameness
    if sameness != "unparsed":
        assert compare(given, gold) == sameness


def test_parse_failure_timeout_and_wrong_are_three_outcomes() -> None:
    assert latex(r"\boxed{x+1}", "x+2") == "wrong"
    assert latex(r"\boxed{x+\frac{1}}", "x+2") == "unparsed"
    verdict = judge(Problem("p", "?", "x+2", "latex"), rf"\boxed{{{POISON}}}")
    assert verdict.outcome == "error"
    assert "CPU time" in verdict.note


def test_a_poisoned_case_costs_its_own_second_and_nothing_else() -> None:
    pool = mathematics.Pool(size=2, limit=1.0)
    try:
        cases = [("x+1", "1+x"), ("x+2", POISON), ("x+3", "3+x"), ("x+4", "4+x"), ("x+5", r"\sin(x)")]
        pool.compare("x", "y")
        with ThreadPoolExecutor(4) as threads:
            found = list(threads.map(lambda case: pool.compare(*case), cases))
        assert found == ["equal", mathematics.TIMEOUT, "equal", "equal", "different"]
        spent = time.perf_counter()
        assert pool.compare("x", POISON) == mathematics.TIMEOUT
        assert time.perf_counter() - spent < 15  # one second of CPU time, on whatever else the machine does
        assert pool.compare(r"\frac{y}{2}", "y/2") == "equal"  # the worker was replaced
    finally:
        pool.close()


def test_no_worker_is_left_behind() -> None:
    pool = mathematics.Pool(size=1)
    assert pool.compare("x+1", "1+x") == "equal"
    worker = pool._idle.queue[0]
    assert worker is not None
    pid = worker.process.pid
    worker.process.kill()  # as the system might, for want of memory
    assert pool.compare("x+1", "1+x") == "equal"
    pool.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert all(worker is None for worker in pool._idle.queue)


def test_threads_may_ask_and_this_process_keeps_its_alarm() -> None:
    import signal

    before = signal.getsignal(signal.SIGALRM)
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda k=k: found.append(latex(rf"\boxed{{{k} + z}}", f"z+{k}"))) for k in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["correct"] * 6
    assert signal.getsignal(signal.SIGALRM) is before


PROGRAM = """
import multiprocessing, os
from xreasoner.grading import judge, mathematics
from xreasoner.problem import Problem

def work(k):
    return judge(Problem("p", "?", f"q+{k}", "latex"), "\\\\boxed{%d + q}" % k).outcome

if __name__ == "__main__":
    print(work(1), *multiprocessing.get_context("spawn").Pool(1).map(work, [2, 3]))
    print(*(worker.process.pid for worker in mathematics.pool()._idle.queue if worker))
"""


def test_spawned_processes_may_ask_and_leave_nothing(tmp_path: object) -> None:
    file = f"{tmp_path}/program.py"
    with open(file, "w") as out:
        out.write(PROGRAM)
    done = subprocess.run([sys.executable, file], capture_output=True, text=True, timeout=120, check=True)
    first, second = done.stdout.strip().split("\n")
    assert first == "correct correct correct"
    assert second.strip()
    for pid in map(int, second.split()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_what_needs_no_worker_asks_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mathematics, "pool", lambda: pytest.fail("asked a worker"))
    assert latex(r"\boxed{\frac{3}{4}}", "0.75") == "correct"
    assert latex(r"\boxed{\dfrac{x}{4}}", r"\frac{x}{4}") == "correct"
    assert latex(r"\boxed{12}", "13") == "wrong"
    assert judge(Problem("p", "?", "B", "choice", ("x", "y")), "B").correct


def test_a_hundred_in_seconds() -> None:
    cases = [(f"{k}\\pi + x", f"x + {k}\\pi") for k in range(2, 102)]
    latex(r"\boxed{x+1}", "1+x")
    begin = time.perf_counter()
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda case: latex(f"\\boxed{{{case[1]}}}", case[0]), cases)) == {"correct"}
    assert time.perf_counter() - begin < 20  # benchmarks/grading.py measures; this floor holds on a busy machine
