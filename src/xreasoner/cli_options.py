"""The options that several commands share: where a model runs, and how it is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xreasoner import checks
from xreasoner.errors import UserError

if TYPE_CHECKING:
    from xreasoner.reasoner import Reasoner

Check = Callable[[], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """A model, and where it runs. The fields are the command line's options; None: not given."""

    model: str
    engine: str | None
    served_model: str | None
    api_key: str | None
    device: str | None
    dtype: str | None
    attn_implementation: str | None
    min_pixels: int | None
    max_pixels: int | None

    def checks(self) -> list[Check]:
        """What can be checked before anything is loaded."""
        return [
            lambda: checks.check_model(self.model),
            self.placement,
            lambda: checks.check_device(self.device),
            lambda: checks.check_dtype(self.dtype),
            lambda: checks.check_attention(self.attn_implementation),
            lambda: checks.check_pixels(self.min_pixels, self.max_pixels),
            self._check_engine,
        ]

    def placement(self) -> dict[str, Any]:
        """The options of the engine, in this process or at servers.

        Raises:
            UserError: an option of the other kind is given.
        """
        here = {"device": self.device, "dtype": self.dtype, "attn_implementation": self.attn_implementation}
        there = {"served_model": self.served_model, "api_key": self.api_key}
        is_remote = self.model.startswith(("http://", "https://"))
        refused = here if is_remote else {"served_model": self.served_model}  # the key's variable is often set
        for name, value in refused.items():
            if value is not None:
                expected = "a model in this process" if is_remote else "a server's URL"
                raise UserError(f"--{name.replace('_', '-')} is for {expected}; MODEL is {self.model}")
        return there if is_remote else here

    def _check_engine(self) -> None:
        from xreasoner.engines.opening import check_kind

        check_kind(self.model, self.engine)


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingOptions:
    """How a model is asked. The fields are the command line's options; None: the model's own."""

    budget: int | None
    answer_budget: int | None
    exit_text: str | None
    exit_on_repeats: bool
    temperature: float | None
    seed: int
    prompt: str | None
    system: str | None = None
    raw_is_possible: bool = False
    """Whether the prompt may be `none`: messages are sent as they are."""

    def checks(self) -> list[Check]:
        """What can be checked before anything is loaded."""
        return [
            lambda: checks.check_prompt(self._named_prompt()),
            lambda: checks.check_exit_text(self.exit_text),
        ]

    def _named_prompt(self) -> str | None:
        return None if self.raw_is_possible and self.prompt == "none" else self.prompt

    def open_reasoner(self, engine: EngineOptions) -> Reasoner:
        """The model, loaded or connected to."""
        from xreasoner.reasoner import Reasoner

        return Reasoner(
            engine.model,
            thinking_budget=self.budget,
            answer_budget=self.answer_budget,
            exit_text=self.exit_text,
            exit_on_repeats=self.exit_on_repeats,
            temperature=self.temperature,
            seed=self.seed,
            prompt=self._named_prompt(),
            system=self.system,
            engine=engine.engine,
            min_pixels=engine.min_pixels,
            max_pixels=engine.max_pixels,
            **engine.placement(),
        )
