"""Where RL's rollouts come from: the engine in this process, or servers that are given new weights after each step.

A step's rollouts are those of problems drawn in order; groups that teach nothing may be filled up with further ones
(DAPO's dynamic sampling). Servers load weights from a folder that is written aside and renamed. Every completion
carries the version of the weights that said it: the number of steps that they had been trained for.
"""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, Protocol

import httpx2
import torch

from xreasoner.completion import Completion
from xreasoner.engines.base import Engine, Request, Sampling
from xreasoner.engines.continuing import Draft
from xreasoner.engines.openai_engine import OpenAIEngine, Server
from xreasoner.errors import EngineError, NonFiniteError, RequestsError, TrainingError, reason
from xreasoner.grading import judge
from xreasoner.grading.rewards import reward
from xreasoner.models.export import export
from xreasoner.models.loading import Loaded, encode
from xreasoner.models.lora import merged
from xreasoner.problem import Problem
from xreasoner.prompts import chat_messages
from xreasoner.recipe import RLStage, Servers
from xreasoner.training import losses, parallel
from xreasoner.training.common import Learner
from xreasoner.verdict import Verdict


@dataclass(frozen=True, slots=True)
class Rollout:
    """One sampled reply with what the loss needs.

    prompt: its token ids. old: the log-probability of each token of the reply under the policy before the update.
    free: which of its tokens are trained on. accuracy: 1.0 where the reply earned its answer, else 0.0: the reward
    before format and length change it. Groups in which it is the same for all teach nothing.
    """

    prompt: tuple[int, ...]
    completion: Completion
    verdict: Verdict
    reward: float
    old: tuple[float, ...]
    free: tuple[bool, ...]
    accuracy: float


Filled = tuple[list[Rollout], int]
"""Rollouts, group by group, and how many problems of the data have been drawn in all."""


@dataclass(frozen=True, slots=True)
class Asking:
    """What a stage's rollouts are made of; alone: this process asks for all of them, not for its rank's share."""

    stage: RLStage
    loaded: Loaded
    data: Sequence[Problem]
    seed: int
    alone: bool = False

    def fill(self, engine: Engine, step: int, drawn: int) -> Filled:
        """A step's rollouts, after so many problems of the data have been drawn.

        The places of groups that teach nothing are filled again with further problems, so many times as the recipe
        says.
        """
        found: list[Rollout] = []
        wanted, asked, size = self.stage.prompts_per_step, 0, self.stage.group_size
        for _ in range(1 + self.stage.refills):
            found += self.roll_out(engine, draw(self.data, drawn, wanted, self.seed, self.stage.shuffle), step, asked)
            drawn, asked = drawn + wanted, asked + wanted
            idle_P = losses.zero_variance(torch.tensor([rollout.accuracy for rollout in found]), size)
            wanted = self.stage.prompts_per_step - int((~idle_P).sum())
            if wanted <= 0:
                break
        return found, drawn

    def roll_out(self, engine: Engine, problems: Sequence[Problem], step: int, asked: int = 0) -> list[Rollout]:
        """A group of judged replies for each problem; each rank makes its share, and has them all.

        asked: how many of the step's problems came before these.
        """
        pairs = [(problem, self._request(problem, step, asked + k)) for k, problem in enumerate(problems)]
        own = pairs if self.alone else parallel.share(pairs)
        groups = _finished_groups(engine, own)
        version = getattr(engine, "version", step)
        found = [
            [judged(self.stage, self.loaded, own[k][0], own[k][1], replace(one, version=version)) for one in group]
            for k, group in sorted(groups.items())
        ]
        return [rollout for group in (found if self.alone else parallel.gathered(found)) for rollout in group]

    def _request(self, problem: Problem, step: int, k: int) -> Request:
        stage = self.stage
        sampling = Sampling(
            temperature=stage.temperature,
            thinking_budget=stage.thinking_budget,
            answer_budget=stage.answer_budget,
            exit_text=stage.exit_text,
            seed=(self.seed * 1_000_003 + step) * 10_007 + k,
            logprobs=True,
        )
        return Request(chat_messages(problem, stage.prompt), n=stage.group_size, sampling=sampling)


def _finished_groups(engine: Engine, asked: Sequence[tuple[Problem, Request]]) -> dict[int, list[Completion]]:
    """{index of a request: its completions}. Groups that failed on their own are left out, with a warning.

    Raises `NonFiniteError` and `EngineError`: the policy's numbers, or what runs it, will not be better for the others.
    """
    groups: dict[int, list[Completion]] = {}
    try:
        engine.generate([request for _, request in asked], on_done=groups.__setitem__)
    except RequestsError as failed:
        for k, error in failed.failures.items():
            if isinstance(error, NonFiniteError | EngineError):
                raise error from failed
            text = f"the rollouts of problem {asked[k][0].id} failed and are left out: {reason(error)}"
            warnings.warn(text, stacklevel=2)
    return groups


def draw(data: Sequence[Problem], begin: int, count: int, seed: int, shuffle: bool = True) -> list[Problem]:
    """The next problems after `begin`: the data in an order of its own in every pass, or as they stand."""
    found = []
    for position in range(begin, begin + count):
        epoch, index = divmod(position, len(data))
        found.append(data[_order(len(data), seed, epoch)[index] if shuffle else index])
    return found


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> list[int]:
    order = list(range(count))
    Random(f"{seed}/{epoch}").shuffle(order)
    return order


def judged(stage: RLStage, loaded: Loaded, problem: Problem, request: Request, completion: Completion) -> Rollout:
    """One reply with its verdict and reward."""
    prompt = tuple(encode(loaded, request.messages).input_ids.tolist())
    verdict = judge(problem, completion.text, completion.exit)
    accuracy = 0.0 if stage.forced == "zero" and any(completion.forced) else reward(verdict)
    well_formed = completion.exit == "natural" and bool(completion.thought) and bool(completion.answer)
    worth = accuracy + stage.format_reward * well_formed
    if stage.overlong == "penalize":
        limit = stage.thinking_budget + stage.answer_budget
        # a thought that had to be closed would have reached the limit: its forced answer makes it no shorter
        length = max(len(completion.token_ids), limit if any(completion.forced) else 0)
        worth += losses.overlong_penalty(torch.tensor(float(length)), limit, stage.overlong_buffer).item()
    return Rollout(prompt, completion, verdict, worth, completion.logprobs, trained_tokens(stage, completion), accuracy)


def trained_tokens(stage: RLStage, completion: Completion) -> tuple[bool, ...]:
    """Which of a reply's tokens are trained on: those that the policy chose, unless the recipe masks them.

    `overlong: mask` masks a truncated reply whole. `forced: mask` masks the thought of a reply whose thought the engine
    closed, so that a right answer after a forced exit does not reinforce a thought that never ends.
    """
    count = len(completion.token_ids)
    if completion.exit == "aborted" or (stage.overlong == "mask" and completion.exit == "truncated"):
        return (False,) * count
    begin = completion.forced.index(True) if stage.forced == "mask" and any(completion.forced) else 0
    return tuple(k >= begin and not forced for k, forced in enumerate(completion.forced))


class Sampler(Protocol):
    """Where a step's rollouts come from. All ranks call everything."""

    banned: Sequence[int]
    """Tokens that are never sampled."""

    def updated(self, version: int) -> None:
        """The weights have been trained for so many steps."""
        ...

    def take(self, step: int, drawn: int, begun: Filled | None) -> Filled:
        """The step's rollouts; begun: those that a checkpoint had of it."""
        ...

    def ahead(self, step: int, drawn: int) -> None:
        """Begin the next step's rollouts, where that is allowed."""
        ...

    def begun(self) -> Filled | None:
        """What was begun ahead, as soon as it is there; for a checkpoint."""
        ...

    def close(self) -> None:
        """Nothing more is asked for."""
        ...


class InProcess:
    """Rollouts by an engine that shares the trainer's weights, or samples from a copy (`Learner.sampler`)."""

    def __init__(self, asking: Asking, learner: Learner, engine: Any) -> None:
        self.asking, self.learner, self.engine = asking, learner, engine
        self.banned: Sequence[int] = engine.banned

    def updated(self, version: int) -> None: ...

    def take(self, step: int, drawn: int, begun: Filled | None) -> Filled:
        sampler = self.learner.sampler
        if sampler is not None:
            sampler.fill(self.learner.model)
        try:
            return self.asking.fill(self.engine, step, drawn)
        finally:  # the update needs the memory
            self.engine.release()
            if sampler is not None:
                sampler.release()

    def ahead(self, step: int, drawn: int) -> None: ...

    def begun(self) -> Filled | None:
        return None

    def close(self) -> None: ...


class Remote:
    """Rollouts from servers. Rank 0 asks them and tells the others; the next step's may run while this one trains."""

    def __init__(self, asking: Asking, learner: Learner, servers: Servers, out: Path) -> None:
        self.asking, self.learner, self.servers, self.out = asking, learner, servers, out / "weights"
        self.banned: Sequence[int] = ()
        self.fleet = Fleet(servers, asking.loaded) if parallel.rank() == 0 else None
        self._worker = ThreadPoolExecutor(1)
        self._begun: Future[Filled] | None = None

    def updated(self, version: int) -> None:
        """Give the servers the new weights, when they have said what they were asked under the old ones."""
        replica = self.learner.replica
        parallel.copy_weights(self.learner.model, replica.model)
        if self.fleet is None:
            return
        self.begun()
        folder = self.out / f"step-{version:06d}"
        dtype = torch.bfloat16 if self.asking.stage.rollouts_in_bfloat16 else torch.float32
        self.out.mkdir(parents=True, exist_ok=True)
        export(merged(replica.model, self.out, dtype), replica.tokenizer, replica.image_processor, folder, dtype)
        self.fleet.load(folder, version)
        for old in self.out.glob("step-*"):
            if old != folder:
                shutil.rmtree(old, ignore_errors=True)

    def take(self, step: int, drawn: int, begun: Filled | None) -> Filled:
        found: Filled | None = None
        if self.fleet is not None:
            found, self._begun = begun or self.begun(), None
            if found is None or self._stale(found, step):
                found = self.asking.fill(self.fleet, step, drawn)
        told: Filled = parallel.told(found)
        return told

    def _stale(self, found: Filled, step: int) -> bool:
        return any(step - rollout.completion.version > self.servers.max_staleness for rollout in found[0])

    def ahead(self, step: int, drawn: int) -> None:
        if self.servers.max_staleness and self.fleet is not None:
            self._begun = self._worker.submit(self.asking.fill, self.fleet, step, drawn)

    def begun(self) -> Filled | None:
        return None if self._begun is None else self._begun.result()

    def close(self) -> None:
        if self.fleet is not None:
            self.fleet.close()
        self._worker.shutdown(wait=False, cancel_futures=True)
        shutil.rmtree(self.out, ignore_errors=True)


@dataclass
class Versioned(Server):
    """A server, and whether it has the newest weights. One that failed has not, until it has loaded them again."""

    current: bool = False

    def room(self, most: int, now: float) -> int:
        return super().room(most, now) if self.current else 0

    def failed(self, error: str, dead: bool) -> None:
        super().failed(error, dead)
        self.current = self.current and not self.down


class Fleet(OpenAIEngine):
    """Servers with weights of one version; `load` gives them the next one's.

    A server that dies is left out until the next weights, for it may come back with others; its requests go elsewhere.
    """

    def __init__(self, settings: Servers, loaded: Loaded) -> None:
        super().__init__(list(settings.urls), patience=settings.patience_seconds)
        names = [field.name for field in fields(Server)]
        self.servers = [Versioned(**{name: getattr(server, name) for name in names}) for server in self.servers]
        self.tokenizer, self.version, self.settings = loaded.tokenizer, -1, settings
        self._behind: set[str] = set()

    async def _exit_tokens(self, draft: Draft) -> Sequence[tuple[int, str]]:
        ids: list[int] = self.tokenizer.encode(draft.sampling.exit_text, add_special_tokens=False)
        return [(token, self.tokenizer.decode([token])) for token in ids]

    def generate(
        self, requests: Sequence[Request], on_done: Callable[[int, list[Completion]], None] | None = None
    ) -> list[list[Completion]]:
        """See `engines.base.Engine`. Raises `TrainingError` for a reply of which the sampled tokens are not known."""
        found = super().generate(requests, on_done)
        for one in (one for group in found for one in group if one.exit != "aborted"):
            if not len(one.token_ids) == len(one.logprobs) > 0:
                raise TrainingError(
                    "rollouts.urls: a server gives no token ids or log-probabilities, or cannot continue a reply from "
                    "its tokens; expected vLLM's (return_token_ids, /tokenize, and /v1/completions with token ids)"
                )
        return found

    def load(self, folder: Path, version: int) -> None:
        """Have all servers load the weights in a folder, at the same time. Raises `EngineError` where none does.

        A server that does not is left out, with a warning that names it the first time.

        vLLM: `collective_rpc` of `reload_weights(weights_path=…)`, which it offers with VLLM_SERVER_DEV_MODE=1; the
        prefix cache of the old weights is emptied.
        """
        complaints: dict[str, str] = {}
        with ThreadPoolExecutor(len(self.servers)) as pool:
            errors = list(pool.map(lambda server: self._load(server.url.removesuffix("/v1"), folder), self.servers))
        for server, error in zip(self.servers, errors, strict=True):
            assert isinstance(server, Versioned)
            server.current = not error
            if error:
                complaints[server.url] = f"{server.url}: {error}"
            else:
                server.worked()
                server.until = 0.0
        if len(complaints) == len(self.servers):
            raise EngineError(f"no server loaded the weights of step {version} ({'; '.join(complaints.values())})")
        news = [text for url, text in complaints.items() if url not in self._behind]
        if news:
            warnings.warn(
                f"the weights of step {version} were not loaded by {'; '.join(news)}; the other servers take over "
                "until it loads later ones",
                stacklevel=2,
            )
        self._behind = set(complaints)
        self.version = version

    def _load(self, root: str, folder: Path) -> str:
        """What went wrong, or nothing."""
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(folder.resolve())}}
        try:
            answer = httpx2.post(root + "/collective_rpc", json=body, timeout=self.settings.load_seconds)
            if answer.status_code != 200:
                return f"/collective_rpc: status {answer.status_code}; start it with VLLM_SERVER_DEV_MODE=1"
            answer = httpx2.post(root + "/reset_prefix_cache", timeout=self.settings.load_seconds)
            if answer.status_code != 200:  # replies would begin with the old weights' keys and values
                return f"/reset_prefix_cache: status {answer.status_code}; start it with VLLM_SERVER_DEV_MODE=1"
        except httpx2.HTTPError as error:
            return f"{type(error).__name__}: {error}"
        return ""
