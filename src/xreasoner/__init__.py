"""X-Reasoner: make vision-language models reason with text alone, and show what that did."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from xreasoner.reasoner import Reasoner as Reasoner

__version__ = "0.1.0"
__all__ = ["Reasoner", "__version__"]


def __getattr__(name: str) -> Any:
    """`Reasoner` is imported when it is asked for: torch takes seconds."""
    if name == "Reasoner":
        from xreasoner.reasoner import Reasoner

        return Reasoner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
