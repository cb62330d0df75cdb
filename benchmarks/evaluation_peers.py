"""The peers' side of evaluation.py; runs in .venv-peers and .venv-lmms, and imports nothing of ours.

python evaluation_peers.py grade|lm-eval|lmms-eval INPUT.json      the last line printed is the result as JSON
"""

from __future__ import annotations

import asyncio
import copy
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Case = dict[str, Any]


def timed(judge: Callable[[Case], bool], cases: Sequence[Case]) -> dict[str, Any]:
    start = time.perf_counter()
    found = [_safely(judge, case) for case in cases]
    return {"correct": found, "seconds": time.perf_counter() - start}


def _safely(judge: Callable[[Case], bool], case: Case) -> bool:
    """A grader that falls over gives no credit."""
    try:
        return bool(judge(case))
    except Exception as error:
        print(f"{case['id']}: {type(error).__name__}: {error}", file=sys.stderr)
        return False


def is_choice(case: Case) -> bool:
    return case["answer_type"] == "mcq"


def math_verify(case: Case) -> bool:
    """math-verify alone, for options too: `StringExtractionConfig` is its own means for letters."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, StringExtractionConfig, parse, verify

    kinds = [LatexExtractionConfig(), ExprExtractionConfig()]
    if is_choice(case):
        kinds = [StringExtractionConfig(strings=tuple(LETTERS[: len(case["choices"])]))]
    gold = case["gold"] if is_choice(case) else f"${case['gold'].strip('$')}$"
    return verify(parse(gold, kinds), parse(case["response"], kinds))


def lm_eval_filters(strict: bool) -> Callable[[Case], bool]:
    """lm-eval's shipped ways: MMLU-Pro's regex or GPQA's multiple-choice filter, GSM8K's two, Minerva's for LaTeX."""
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import MultiChoiceRegexFilter, RegexFilter
    from lm_eval.tasks.minerva_math import utils as minerva

    letter = RegexFilter(r"answer is \(?([ABCDEFGHIJ])\)?")
    choice = MultiChoiceRegexFilter(r"(\([A-Z]\))", group_select=-1, ignore_case=True, ignore_punctuation=True)
    number = RegexFilter(
        r"The answer is (\-?[0-9\.\,]+)." if strict else r"(-?[$0-9.,]{2,})|(-?[0-9]+)", -1 * (not strict)
    )
    ignored = [",", "\\$", "(?s).*#### ", "\\.$"]

    def judge(case: Case) -> bool:
        gold, replies, docs = case["gold"], [[case["response"]]], [{"choices": case["choices"]}]
        if is_choice(case) and strict:
            said = letter.apply(replies, docs)[0][0]
        elif is_choice(case):
            said, gold = choice.apply(replies, docs)[0][0], f"({gold})"
        elif case["answer_type"] in ("latex", "list"):
            if not strict:
                scored = minerva.process_results({"answer": gold, "solution": f"${gold}$"}, [case["response"]])
                return bool(scored["math_verify"])
            said = minerva.normalize_final_answer(minerva.get_unnormalized_answer(case["response"]))
            return minerva.is_equiv(said, minerva.normalize_final_answer(gold))
        elif case["answer_type"] in ("yesno", "yesnomaybe", "open"):
            said = case["response"].strip()
        else:
            said = number.apply(replies, docs)[0][0]
        scored = exact_match_hf_evaluate(
            predictions=[said], references=[gold], regexes_to_ignore=ignored, ignore_case=True, ignore_punctuation=False
        )
        return bool(scored["exact_match"])

    return judge


def inspect_scorers(case: Case) -> bool:
    """Inspect's scorers as its docs pair them: choice, match for numbers, math for LaTeX, includes for text."""
    from inspect_ai.model import ModelName, ModelOutput
    from inspect_ai.scorer import Target, choice, includes, match
    from inspect_ai.scorer import math as mathematics
    from inspect_ai.solver import Choices, TaskState
    from inspect_ai.solver._multiple_choice import parse_answers

    output = ModelOutput.from_content("peer/peer", case["response"])
    options = case["choices"] or []
    state = TaskState(ModelName("peer/peer"), case["id"], 1, "", [], choices=Choices(options), output=output)
    if is_choice(case):
        said = parse_answers(state, multiple_correct=False)
        for index in range(len(options)):
            state.choices.mark_choice(index, LETTERS[index] in said)
        scorer = choice()
    elif case["answer_type"] in ("latex", "list"):
        scorer = mathematics()
    elif case["answer_type"] in ("yesno", "yesnomaybe", "open"):
        scorer = includes()
    else:
        scorer = match(numeric=True)
    return asyncio.run(scorer(state, Target(case["gold"]))).value == "C"


def grade(given: dict[str, Any]) -> dict[str, Any]:
    graders: dict[str, Callable[[Case], bool]] = {
        "math-verify alone": math_verify,
        "lm-eval, strict filters": lm_eval_filters(strict=True),
        "lm-eval, flexible filters": lm_eval_filters(strict=False),
        "Inspect's scorers": inspect_scorers,
    }
    return {"graders": {name: timed(judge, given["cases"]) for name, judge in graders.items()}}


def lm_eval(given: dict[str, Any]) -> dict[str, Any]:
    """Generations of lm-eval's hf backend under the chat template, and the seconds of `simple_evaluate`, once warm."""
    import tempfile

    import lm_eval
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    torch.set_num_threads(given["threads"])
    model = AutoModelForImageTextToText.from_pretrained(given["model"], dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(given["model"])
    backend = HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        device="cpu",
        batch_size=given["batch"],
        max_length=2048,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "items.json"
        path.write_text("".join(json.dumps({**row, "n": n}) + "\n" for n, row in enumerate(given["rows"])))
        task = {
            "task": "items",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(path)}, "cache_dir": folder},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_text": "{{prompt}}",
            "doc_to_target": "{{gold}}",
            "generation_kwargs": {"until": [], "max_gen_toks": given["max_new_tokens"], "do_sample": False},
            "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        }

        def evaluate(limit: int | None) -> Any:
            return lm_eval.simple_evaluate(
                model=backend,
                tasks=[copy.deepcopy(task)],
                apply_chat_template=True,
                bootstrap_iters=0,
                log_samples=True,
                limit=limit,
            )

        evaluate(given["warm"])
        start = time.perf_counter()
        found = evaluate(None)
        seconds = time.perf_counter() - start
    samples = sorted(found["samples"]["items"], key=lambda sample: sample["doc"]["n"])
    return {"replies": [sample["resps"][0][0] for sample in samples], "seconds": seconds}


def lmms_eval(given: dict[str, Any]) -> dict[str, Any]:
    """Generations of lmms-eval's Qwen2.5-VL, in float32 as ours (it loads bfloat16, which a CPU is slower in), and the
    seconds of its `generate_until`: pictures, prompts and replies, without its tasks and scores.
    """
    import torch
    from lmms_eval.api.instance import Instance
    from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL
    from PIL import Image

    torch.set_num_threads(given["threads"])
    backend = Qwen2_5_VL(
        pretrained=given["model"], device="cpu", device_map="cpu", batch_size=given["batch"], **given["pixels"]
    )
    backend._model.float()
    rows = [{**row, "images": [Image.open(path).convert("RGB") for path in row["images"]]} for row in given["rows"]]
    backend.task_dict = {"items": {"test": rows}}

    def messages(row: dict[str, Any]) -> list[dict[str, Any]]:
        pictures = [{"type": "image", "url": image} for image in row["images"]]
        return [{"role": "user", "content": [*pictures, {"type": "text", "text": row["prompt"]}]}]

    settings = {"max_new_tokens": given["max_new_tokens"], "temperature": 0}
    asked = [
        Instance(
            request_type="generate_until",
            arguments=("", messages, settings, n, "items", "test"),
            idx=0,
            metadata={"task": "items", "doc_id": n, "repeats": 1},
        )
        for n in range(len(rows))
    ]
    backend.generate_until(asked[: given["warm"]])
    start = time.perf_counter()
    found = backend.generate_until(asked)
    return {"replies": [reply.text for reply in found], "seconds": time.perf_counter() - start}


if __name__ == "__main__":
    task, path = sys.argv[1:]
    result = {"grade": grade, "lm-eval": lm_eval, "lmms-eval": lmms_eval}[task](json.loads(Path(path).read_text()))
    print(json.dumps(result))
