"""The teacher: a solver that writes long chains of thought in the card's grammar."""

from __future__ import annotations

import re
from random import Random

from xreasoner.problem import LABELS
from xreasoner.tiny.world import Scene, Task

FACT_LEADS = ("Facts:", "I see:", "Given:", "Entries:")
PLAN_LEADS = ("Plan:", "To do:", "So:")
CHECK_LEADS = ("Check:", "Again:", "Verify:")
_EQUATION = re.compile(r"= (\d+)\.")


def facts_line(rng: Random, scene: Scene) -> str:
    return f"{rng.choice(FACT_LEADS)} {scene.facts}."


def plan_line(rng: Random, task: Task) -> str:
    return f"{rng.choice(PLAN_LEADS)} {task.plan}"


def _slip(rng: Random, step: str) -> str:
    """The step with a wrong result, noticed and mended."""
    match = _EQUATION.search(step)
    assert match is not None
    wrong = int(match[1]) + rng.choice((-1, 1, 10))
    return f"{step[: match.start()]}= {abs(wrong)}. Wait, {step}"


def with_slips(rng: Random, steps: tuple[str, ...], rate: float) -> list[str]:
    """Each step that is an equation errs at the given rate and corrects itself."""
    return [_slip(rng, step) if _EQUATION.search(step) and rng.random() < rate else step for step in steps]


def final_answer(answer: str, options: tuple[str, ...]) -> str:
    """`B: 14` for multiple choice, `14` otherwise."""
    return f"{LABELS[options.index(answer)]}: {answer}" if options else answer


def direct(answer: str, options: tuple[str, ...]) -> str:
    return f"<answer>{final_answer(answer, options)}</answer>"


def chain(rng: Random, scene: Scene, task: Task, options: tuple[str, ...], slip_rate: float = 0.06) -> str:
    """Restate the facts, plan, go step by step (sometimes err and mend), check, answer."""
    parts = [facts_line(rng, scene), plan_line(rng, task), *with_slips(rng, task.steps, slip_rate)]
    if rng.random() < 0.5:
        parts.append(f"{rng.choice(CHECK_LEADS)} {task.check}")
    if options:
        parts.append(f"{task.answer} is {LABELS[options.index(task.answer)]}.")
    return f"<think> {' '.join(parts)} </think> {direct(task.answer, options)}"
