"""The engine for vLLM in process, run inside vLLM's environment by test_vllm.py: python vllm_side.py QUESTIONS OUT."""

import json
import sys
from pathlib import Path

from peers.cases import BUDGETS, answered, cases

from xreasoner.decisions import decide
from xreasoner.engines.vllm_engine import VllmEngine

if __name__ == "__main__":
    options = {"dtype": "float32", "max_model_len": 2048, "enforce_eager": True, "max_num_seqs": 32}
    engine = VllmEngine("tiny", **options)
    found = {}
    for name in BUDGETS:
        requests = cases(name)
        found[name] = [[(c.text, c.exit, c.prompt_tokens) for c in group] for group in engine.generate(requests)]
    requests = cases("natural")[:4]
    completions = engine.generate(requests)
    pairs = zip(requests, completions, strict=True)
    decisions = [decide(engine, request, group[0], ["14", "3", "21"]) for request, group in pairs]
    found["decisions"] = [decision.probabilities for decision in decisions]
    groups = engine.generate([answered(question) for question in json.loads(Path(sys.argv[1]).read_text())])
    found["answered"] = [(c.text, c.exit, c.token_ids) for group in groups for c in group]
    engine.close()
    Path(sys.argv[2]).write_text(json.dumps(found))
