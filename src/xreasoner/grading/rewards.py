"""The reward of RL: 1 for a right answer, 0 for all else; no partial credit and no format reward, as in the paper."""

from __future__ import annotations

from xreasoner.verdict import Verdict


def reward(verdict: Verdict) -> float:
    """1.0 where the verdict is `correct`, else 0.0."""
    return 1.0 if verdict.correct else 0.0
