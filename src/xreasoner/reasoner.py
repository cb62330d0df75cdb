"""`Reasoner`: ask a model, wherever it runs, with the model card's settings.

r = Reasoner("microsoft/X-Reasoner-7B")          # a hub id, a folder, "tiny", or "http://host:8000/v1"
a = r.ask("Is there a dog in the picture?", images=["demo.jpeg"], options=["Yes", "No"])
a.answer, a.thought, a.exit, a.option_probabilities, a.usage
"""

from __future__ import annotations

import queue
import sys
import warnings
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, TypeVar

from PIL.Image import Image

from xreasoner.checks import check_preprocessing
from xreasoner.completion import Completion, Exit
from xreasoner.decisions import Decision, decide
from xreasoner.engines.base import Engine, Message, Preprocessing, Request, Sampling, sized
from xreasoner.engines.driving import finished
from xreasoner.engines.opening import addresses, open_engine
from xreasoner.errors import RequestsError, UserError
from xreasoner.media import Guard, Reference, pictures
from xreasoner.problem import LABELS, Problem
from xreasoner.prompts import PROMPTS, chat_messages, default_prompt, trained_prompt
from xreasoner.reasoner_settings import ReasonerSettings, read_reasoner_settings, warn_of_fallback
from xreasoner.registry import nearest
from xreasoner.trace import CLOSE, Splitter

NEW_TOKENS = 4000
"""The card's: thinking and answer together."""
ANSWER_TOKENS = 256
PIXELS = 262_144
"""The card's min_pixels and max_pixels."""
TEMPERATURE = 0.6
"""The card's (vLLM)."""
EXIT_TEXT = Sampling().exit_text
_Key = tuple[str, Request, tuple[str, ...]]


class Piece(NamedTuple):
    """A piece of a reply while it is written; the tags are left out."""

    label: Literal["thought", "answer"]
    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, over both passes where the thought was ended by force."""

    prompt_tokens: int
    thought_tokens: int
    answer_tokens: int

    @property
    def completion_tokens(self) -> int:
        """Tokens of the whole reply."""
        return self.thought_tokens + self.answer_tokens

    @property
    def total_tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said to a question.

    exit: how it ended (`completion.Completion`). option_probabilities: of each option's text, adding up to 1, and
    mass: the probability that the answer is one of them at all; None without options, or where a server cannot say.
    usage: tokens of the prompt, the thought and the answer.
    """

    id: str
    completion: Completion
    option_probabilities: dict[str, float] | None = None
    mass: float | None = None
    usage: Usage = field(init=False)

    def __post_init__(self) -> None:
        counts = self.completion
        usage = Usage(counts.prompt_tokens, counts.thought_tokens, counts.answer_tokens)
        object.__setattr__(self, "usage", usage)

    def __repr__(self) -> str:
        thought = self.thought if len(self.thought) <= 60 else f"{self.thought[:59]}…"
        parts = {"id": self.id, "answer": self.answer, "exit": self.exit, "thought": thought}
        shown = [f"{name}={value!r}" for name, value in parts.items() if value]
        if self.option_probabilities:
            shares = {option: round(share, 3) for option, share in self.option_probabilities.items()}
            shown.append(f"option_probabilities={shares}")
        return f"Answer({', '.join([*shown, f'usage={self.usage}'])})"

    @property
    def answer(self) -> str:
        return self.completion.answer

    @property
    def content(self) -> str:
        """The answer with the solution around it, if any: what the pieces of a stream join to."""
        return self.completion.content

    @property
    def thought(self) -> str:
        return self.completion.thought

    @property
    def exit(self) -> Exit:
        return self.completion.exit

    @property
    def text(self) -> str:
        """The whole reply with its tags."""
        return self.completion.text


def own_guard() -> Guard:
    """For pictures that the user of this process names: any file, and any public host."""
    return Guard(hosts=frozenset({"*"}), root=Path(Path.cwd().anchor))


def located(reference: Reference) -> Reference:
    """A relative path as an absolute one; anything else as it is."""
    if isinstance(reference, str) and reference.partition(":")[0] not in ("http", "https", "data", "file"):
        return Path(reference).absolute()
    return reference.absolute() if isinstance(reference, Path) else reference


def as_references(images: Reference | Sequence[Reference]) -> list[Reference]:
    """The images of a question: one reference, or a sequence of them."""
    if isinstance(images, bytearray | memoryview):
        return [bytes(images)]
    return [images] if isinstance(images, str | Path | bytes | Image) else list(images)


def check_question(question: str, options: Sequence[str] = ()) -> None:
    """Raise `UserError` for an empty question, and for options that cannot be labeled."""
    if not question.strip():
        raise UserError('the question is empty; expected some text, as in: xreasoner ask tiny "What is 3 + 4?"')
    if isinstance(options, str):
        raise UserError(f"options is the text {options!r}; expected a list of texts")
    if len(options) > len(LABELS):
        raise UserError(f"{len(options)} options were given, at most {len(LABELS)} have a label")
    if len(options) == 1 or not all(option.strip() for option in options):
        raise UserError(f"options {list(options)!r}; expected two or more texts, none of them empty, or none at all")


class Reasoner:
    """A model and how to ask it.

    model: a hub id, a folder, a registered name, or servers' addresses. engine: "torch", "vllm", "openai", or an
    `Engine`; what suits the model when left out. temperature: the card's 0.6, but 0 (greedy) for the embedded models.
    thinking_budget and answer_budget: in tokens, the card's 4,000 in all; a thought takes at most half of the model's
    context. min_pixels, max_pixels: width times height of pictures; the card's 262,144, or the checkpoint's own limits
    where it takes no such pictures (as the embedded ones). preprocessing: see `engines.base.Request`. exit_text: what
    closes a thought at its budget, with a sentence before it if wanted; exit_on_repeats: also where the thought repeats
    itself. system: a system prompt in place of Qwen2.5-VL's own. prompt: a name of `prompts.PROMPTS`; what the model
    was trained with, or the card's, when
    left out. guard: what pictures may be; any local file and public host when left out. Further options go to the
    engine (`engines.opening.open_engine`: device, dtype, attn_implementation, api_key, …).
    """

    def __init__(
        self,
        model: str | Sequence[str],
        *,
        engine: str | Engine | None = None,
        temperature: float | None = None,
        thinking_budget: int | None = None,
        answer_budget: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        preprocessing: Preprocessing = "processor",
        top_p: float = 1.0,
        top_k: int = 0,
        seed: int = 0,
        exit_text: str | None = None,
        exit_on_repeats: bool = False,
        system: str | None = None,
        prompt: str | None = None,
        guard: Guard | None = None,
        **options: Any,
    ) -> None:
        if prompt is not None and prompt not in PROMPTS:
            raise UserError(f"unknown prompt {prompt!r}; {nearest(prompt, PROMPTS)}")
        self.preprocessing = check_preprocessing(preprocessing)
        self.prompt, self.system, self.guard = prompt, system, guard or own_guard()
        opened = open_engine(model, engine=engine, **options) if engine is None or isinstance(engine, str) else engine
        self.engine: Engine = opened
        self.model = served_name(self.engine) if not isinstance(model, str) or addresses(model) else model
        served = bool(not isinstance(model, str) or addresses(model))
        named = engine is None or isinstance(engine, str)  # an engine of the caller's own may have any name
        carried = read_reasoner_settings(self.model, hub=named and not served)
        self.prompt = prompt or trained_prompt(self.model, carried)
        own = carried or ReasonerSettings()
        answering = first_given(answer_budget, own.answer_budget, ANSWER_TOKENS)
        thinking = first_given(thinking_budget, own.thinking_budget, NEW_TOKENS - answering)
        thinking = fitted_budget(thinking, context(self.engine), thinking_budget is not None)
        self.sampling = checked(
            Sampling(
                temperature=first_given(temperature, own.temperature, TEMPERATURE),
                top_p=top_p,
                top_k=top_k,
                seed=seed,
                thinking_budget=thinking,
                answer_budget=answering,
                exit_on_repeats=exit_on_repeats,
                exit_on_end=True,
                exit_text=first_given(exit_text, own.exit_text, EXIT_TEXT),
            )
        )
        if self.prompt is None and not served:
            card = "the model card's prompts are used (card-mc-vllm with options, paper-train without)"
            budgets = f"thinking budget {self.sampling.thinking_budget:,}, answer budget {answering:,}"
            warn_of_fallback(self.model, f"{card}, {budgets}")
        self.min_pixels, self.max_pixels = sized(min_pixels, max_pixels, default_pixels(carried, self.engine))

    def request(
        self,
        question: str,
        images: Reference | Sequence[Reference] = (),
        options: Sequence[str] = (),
        *,
        history: Sequence[Message] = (),
        history_images: Sequence[Image] = (),
        **sampling: Any,
    ) -> Request:
        """The request that a question becomes. history: messages before it, and their pictures.

        sampling: fields of `engines.base.Sampling` for this question alone. Raises `UserError` for an empty question or
        bad options, `MediaError` for a picture.
        """
        check_question(question, options)
        found = pictures([located(image) for image in as_references(images)], self.guard)
        problem = Problem("question", question, "", "text", tuple(options), found)
        messages = chat_messages(problem, self.prompt or default_prompt(self.model, options))
        first = [{"role": "system", "content": self.system}] if self.system else []
        return Request(
            [*first, *history, *messages],
            (*history_images, *found),
            sampling=changed(self.sampling, sampling),
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
            preprocessing=self.preprocessing,
        )

    def ask(
        self,
        question: str,
        images: Reference | Sequence[Reference] = (),
        options: Sequence[str] = (),
        *,
        probabilities: bool | None = None,
        **sampling: Any,
    ) -> Answer:
        """Put one question. images: paths, addresses, data URIs, bytes or PIL images; `<image>` or `<image 1>` in the
        question says where each stands. probabilities: of the options; None gives them where the engine can say.
        """
        request = self.request(question, images, options, **sampling)
        (completion,) = self.engine.generate([request])[0]
        return self.answered("", request, completion, options, probabilities)

    def answered(
        self,
        id: str,
        request: Request,
        completion: Completion,
        options: Sequence[str],
        probabilities: bool | None = None,
    ) -> Answer:
        """The answer, with its options' probabilities."""
        decision = self._decision(request, completion, options, probabilities) if options else None
        if decision is None:
            return Answer(id, completion)
        names = options if len(set(options)) == len(options) else [f"{a}: {b}" for a, b in zip(LABELS, options)]  # noqa: B905
        return Answer(id, completion, dict(zip(names, decision.probabilities, strict=True)), decision.mass)

    def _decision(
        self, request: Request, completion: Completion, options: Sequence[str], wanted: bool | None
    ) -> Decision | None:
        if wanted is False or completion.exit == "aborted":
            return None
        try:
            return decide(self.engine, request, completion, options)
        except UserError:
            if wanted:
                raise
            return None  # a server that does not score

    def stream(
        self,
        question: str,
        images: Reference | Sequence[Reference] = (),
        options: Sequence[str] = (),
        *,
        probabilities: bool | None = None,
        **more: Any,
    ) -> Stream:
        """Put one question; its pieces can be iterated over while they are written. See `ask` and `request`."""
        return Stream(self, self.request(question, images, options, **more), tuple(options), probabilities)

    def ask_many(
        self,
        problems: Iterable[Problem | Mapping[str, Any] | str],
        *,
        probabilities: bool | None = None,
        progress: bool | None = None,
        **sampling: Any,
    ) -> Iterator[Answer]:
        """Answers as they are finished; `Answer.id` says to which problem each belongs. progress: shown while it goes
        on; None: on a terminal.

        problems: `Problem`s, texts, or mappings with `question` and, if wanted, `id`, `images`, `options`; without an
        id it is the problem's number, from 0. Raises `UserError` that names the problem where one is no problem; and,
        after the other answers, `RequestsError` that names those that failed.
        """
        from xreasoner.progress import Screen

        failed: dict[str, Exception] = {}
        done = 0

        total = len(problems) if isinstance(problems, Sized) else 0
        with Screen() if (sys.stdout.isatty() if progress is None else progress) else _Silent() as screen:
            outcomes = finished(self.engine, self._asked(problems, sampling))
            for done, ((id, request, options), outcome) in enumerate(outcomes, 1):
                screen.show("answers", done, total)
                if isinstance(outcome, Exception):
                    failed[id] = outcome
                    continue
                try:
                    answer = self.answered(id, request, outcome[0], options, probabilities)
                except Exception as error:  # of its options' probabilities
                    failed[id] = error
                    continue
                yield answer
        if failed and len(failed) == done == 1:
            raise next(iter(failed.values()))
        if failed:
            raise RequestsError(failed, done, "problem")

    def _asked(
        self, problems: Iterable[Problem | Mapping[str, Any] | str], sampling: dict[str, Any]
    ) -> Iterator[tuple[_Key, Request]]:
        seen = set()
        for k, problem in enumerate(problems):
            id, question = entry(k, problem)
            if id in seen:
                raise UserError(f"problem {k}: the id {id!r} is there twice; expected every problem to have its own")
            seen.add(id)
            try:
                request = self.request(**question, **sampling)
            except UserError as error:
                raise type(error)(f"problem {id!r}: {error}") from None
            yield (id, request, tuple(question.get("options", ()))), request

    def close(self) -> None:
        """Let the engine go, where it holds more than memory."""
        if hasattr(self.engine, "close"):
            self.engine.close()

    def __enter__(self) -> Reasoner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


class Stream:
    """A reply while it is written: iterate for its `Piece`s; `answer` is the whole. Leaving the loop cancels it."""

    def __init__(
        self, reasoner: Reasoner, request: Request, options: Sequence[str], probabilities: bool | None
    ) -> None:
        self.request = request
        self._reasoner, self._options, self._probabilities = reasoner, options, probabilities
        self._texts: queue.Queue[str] = queue.Queue()
        self._engine = reasoner.engine
        self._ticket = self._engine.submit(request, on_text=lambda _, text: self._texts.put(text))
        self._pieces = self._run()
        self._answer: Answer | None = None

    def __iter__(self) -> Iterator[Piece]:
        try:
            yield from self._pieces
        finally:
            self._pieces.close()

    @property
    def answer(self) -> Answer:
        """The whole answer; what is not written yet is waited for."""
        for _ in self._pieces:
            pass
        if self._answer is None:
            (completion,) = self._ticket.completions
            self._answer = self._reasoner.answered("", self.request, completion, self._options, self._probabilities)
        return self._answer

    def cancel(self) -> None:
        """End the reply as `aborted`, with what is written; whoever iterates sees it end."""
        self._ticket.cancel()

    def _run(self) -> Generator[Piece, None, None]:
        splitter, done = Splitter(), self._ticket.done
        try:
            while not done.is_set() or not self._texts.empty():
                if self._texts.empty() and not done.is_set() and self._engine.step():
                    continue
                try:
                    text = self._texts.get(timeout=0.02)
                except queue.Empty:
                    continue
                yield from _labelled(splitter.feed(text))
            _ = self._ticket.completions  # raises what went wrong
            yield from _labelled(splitter.close()[0])
        finally:
            if not done.is_set():
                self._ticket.cancel()
                self._engine.wait([self._ticket])


class _Silent:
    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, task: str, done: int, total: int) -> None:
        pass


def _labelled(found: Iterable[tuple[str, str]]) -> Iterator[Piece]:
    """Text outside of all tags belongs to the answer."""
    for label, text in found:
        yield Piece("thought" if label == "thought" else "answer", text)


FIELDS = ("id", "question", "images", "options")


def entry(k: int, problem: Problem | Mapping[str, Any] | str) -> tuple[str, dict[str, Any]]:
    """(id, keywords of `Reasoner.request`) of one of `ask_many`'s problems."""
    if isinstance(problem, Problem):
        return problem.id, {"question": problem.question, "images": problem.images, "options": problem.options}
    found = {"question": problem} if isinstance(problem, str) else dict(problem)
    unknown = [name for name in found if name not in FIELDS]
    if unknown or not isinstance(found.get("question"), str):
        what = f"the field {unknown[0]!r}" if unknown else f"question {found.get('question')!r}"
        raise UserError(
            f"problem {found.get('id', k)!r}: found {what}; expected question, and if wanted {', '.join(FIELDS)}"
        )
    if isinstance(found.get("options", ()), str | bytes):
        raise UserError(f"problem {found.get('id', k)!r}: options is a text; expected a list")
    return str(found.pop("id", k)), found


_T = TypeVar("_T")


def first_given(*values: _T | None) -> _T:
    """The first value that is not None; the last one is a default."""
    return next(value for value in values if value is not None)


def default_pixels(own: ReasonerSettings | None, engine: Engine) -> tuple[int | None, int | None]:
    """(min_pixels, max_pixels) where none are asked for; None is the image processor's own limit.

    The checkpoint's settings, or the card's area for one that carries none and whose image processor allows it.
    """
    if own is not None:
        return own.min_pixels, own.max_pixels
    card = None if most_pixels(engine) < PIXELS else PIXELS
    return card, card


def fitted_budget(budget: int, room: int | None, asked: bool) -> int:
    """A thinking budget that leaves half of the model's context to prompt and answer; warns where this cuts one that
    was asked for."""
    if room is None or budget <= room // 2:
        return budget
    if asked:
        warnings.warn(
            f"thinking budget {budget:,} reduced to {room // 2:,} tokens, half of the model's context of {room:,}",
            stacklevel=3,
        )
    return room // 2


def changed(sampling: Sampling, changes: Mapping[str, Any]) -> Sampling:
    """Raises `UserError` for a field that sampling does not have, or a value that it cannot have."""
    known = [field.name for field in fields(Sampling)]
    for name in changes:
        if name not in known:
            raise UserError(f"unknown option {name!r}; {nearest(name, known)}")
    return checked(replace(sampling, **changes)) if changes else sampling


def checked(sampling: Sampling) -> Sampling:
    """Raises `UserError` that names the field that is out of bounds."""
    bounds = {
        "temperature": (sampling.temperature >= 0, "0 (greedy) or more"),
        "top_p": (0 < sampling.top_p <= 1, "more than 0 and at most 1"),
        "top_k": (sampling.top_k >= 0, "0 (all) or more"),
        "seed": (sampling.seed >= 0, "0 or more"),
        "thinking_budget": (sampling.thinking_budget >= 0, "0 or more tokens"),
        "answer_budget": (sampling.answer_budget >= 1, "1 token or more"),
        "exit_text": (CLOSE in sampling.exit_text, f"a text with {CLOSE}, as in ' So I answer now. {CLOSE}'"),
    }
    for name, (good, expected) in bounds.items():
        if not good:
            raise UserError(f"{name} is {getattr(sampling, name)!r}; expected {expected}")
    return sampling


def served_name(engine: Engine) -> str:
    """The name under which servers know their model."""
    return engine.info.model_name


def context(engine: Engine) -> int | None:
    """Tokens that prompt and reply may have together, where the engine knows."""
    return engine.info.context_length


def exit_tokens(engine: Engine, text: str) -> int:
    """Tokens of a text that closes the thought; an estimate where the tokenizer is the server's."""
    tokenizer = getattr(getattr(engine, "loaded", engine), "tokenizer", None)
    return -(-len(text.encode()) // 3) if tokenizer is None else len(tokenizer.encode(text, add_special_tokens=False))


def most_pixels(engine: Engine) -> float:
    """The most pixels that the checkpoint itself has for a picture; ∞ where it is not known.

    Services of our own know it themselves: 0.
    """
    most = engine.info.max_pixels
    return float("inf") if most is None else float(most)
