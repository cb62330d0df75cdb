"""The one grader. `judge` says what a reply is worth, `reward` turns that into a number for RL."""

from xreasoner.grading.grader import judge
from xreasoner.grading.rewards import reward

__all__ = ["judge", "reward"]
