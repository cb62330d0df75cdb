"""What the numbers allow to be said: gains, the headline, the protocol. All of it is computed from the summary."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from xreasoner.benchmarks.protocol import BY_DESIGN, has_images
from xreasoner.benchmarks.store import Row, condition_of
from xreasoner.benchmarks.summary import BASES, GROUPS, REASONERS, group_of, with_cells
from xreasoner.benchmarks.table import TABLE
from xreasoner.reporting.reading import Run
from xreasoner.reporting.svg import percent

Gain = Mapping[str, Any]

SPLITS = {
    "easy-vqa": "easy-vqa's own test split",
    "gym-train": "families that post-training trains on; small numbers, so it has seen many of the items",
    "gym-held-out": "families that post-training never sees",
}
"""Where a benchmark's items come from, for those that are no cell."""


def signed(share: float) -> str:
    """0.539 → "+53.9" (points), with a true minus sign."""
    return f"{100 * share:+.1f}".replace("-", "−")


def interval(low: float, high: float) -> str:
    """The ends of an interval of differences, in points."""
    return f"{signed(low)} to {signed(high)}"


def is_comparable(gain: Gain) -> bool:
    """Whether both numbers were measured alike, or differ only in the prompt of a declared control."""
    return gain.get("difference") is not None


def verdict(gain: Gain) -> str:
    """What a comparison says, in words."""
    if not is_comparable(gain):
        return f"not comparable: {differing(gain)}"
    direction = "higher" if gain["difference"] > 0 else "lower"
    said = f"not distinguishable: {doubt(gain)}" if doubt(gain) else direction
    return f"{said} ({by_design(gain)})" if by_design(gain) else said


def by_design(gain: Gain) -> str:
    """ "prompts differ by design" for a comparison with a declared control, else ""."""
    return BY_DESIGN if gain.get("control") else ""


def differing(gain: Gain) -> str:
    """In which fields the protocols of a comparison differ, with both values."""
    return "; ".join(f"{each['field']} {each['after']} against {each['before']}" for each in gain.get("differs") or [])


def not_compared(gains: Sequence[Gain]) -> list[str]:
    """Where stages are not compared, and why: a line for each two stages and way in which their protocols differ."""
    places: dict[tuple[str, str, str], list[str]] = {}
    for gain in gains:
        if gain.get("kind") != "ratio" and not is_comparable(gain):
            places.setdefault((gain["after"], gain["before"], differing(gain)), []).append(_place_name(gain))
    return [
        f"Not compared: {after} and {before} on {', '.join(names)}, for they were measured differently: {what}."
        for (after, before, what), names in places.items()
    ]


def designed(gains: Sequence[Gain]) -> str:
    """A sentence that names the declared controls' comparisons; "" without any."""
    pairs = dict.fromkeys(f"{gain['after']} and {gain['before']}" for gain in gains if by_design(gain))
    return f"A declared control: prompts differ by design ({'; '.join(pairs)})." if pairs else ""


def doubt(gain: Gain) -> str:
    """Why a difference is not distinguishable from none, or "" where it is."""
    if not is_comparable(gain):
        return f"not comparable: {differing(gain)}"
    if gain.get("asked", "alike") not in ("alike", BY_DESIGN):
        return f"asked differently: {gain['asked']}"  # a summary of an earlier version
    if gain["low"] <= 0 <= gain["high"]:
        return "the interval covers 0"
    detectable = gain.get("detectable")
    if detectable is not None and abs(gain["difference"]) < detectable:
        return f"below ±{percent(detectable)}, the smallest difference these items can show"
    if gain.get("p_holm") is not None and gain["p_holm"] >= 0.05:
        return f"Holm’s p is {p_value(gain['p_holm'])} over the whole table"
    return ""


def p_value(p: float | None) -> str:
    """A p-value in two digits; tiny ones as a bound."""
    if p is None:
        return "—"
    return "< 0.0001" if p < 1e-4 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def can_show(gains: Sequence[Gain]) -> str:
    """What these samples can tell apart at all, to be read before the numbers; "" without comparisons."""
    found = [gain for gain in gains if gain.get("detectable") is not None]
    if not found:
        return ""
    low, high = (percent(f(gain["detectable"] for gain in found)) for f in (min, max))
    fewest, most = min(gain["n"] for gain in found), max(gain["n"] for gain in found)
    much = f"±{low}" if low == high else f"±{low} to ±{high}"
    many = f"{fewest}" if fewest == most else f"{fewest} to {most}"
    return (
        f"Smallest difference that these samples can show: {much} points ({many} items a comparison, power 0.8). "
        "Smaller differences are not ranked."
    )


def of_kind(gains: Sequence[Gain], kind: str) -> list[Gain]:
    return [gain for gain in gains if gain.get("kind") == kind]


def is_base(before: str, baseline: str | None) -> bool:
    """Whether a comparison's `before` is what the report compares with, and not a stage on the way."""
    return before == baseline if baseline is not None else before not in REASONERS


def final_stage(gains: Sequence[Gain], baseline: str | None = None) -> str | None:
    """The last reasoner whose cells were compared with the base's."""
    found = [
        gain["after"] for gain in of_kind(gains, "cell") if is_base(gain["before"], baseline) and is_comparable(gain)
    ]
    named = [name for name in found if name in REASONERS] or found
    return max(named, key=lambda name: REASONERS.index(name) if name in REASONERS else -1, default=None)


def over_base(gains: Sequence[Gain], kind: str, after: str | None, baseline: str | None = None) -> dict[str, Gain]:
    """By cell, the gains of one stage over the better base, or over the baseline; those that are comparable."""
    found = [
        gain
        for gain in of_kind(gains, kind)
        if gain["after"] == after and is_base(gain["before"], baseline) and is_comparable(gain)
    ]
    return {gain["cell"]: gain for gain in found}


LOSSES = 4
"""How many losses the first screen names."""


def losses(gains: Sequence[Gain], baseline: str | None = None) -> list[dict[str, str]]:
    """The largest distinguishable losses of the final stage (or the last that has any comparison), largest first."""
    after = final_stage(gains, baseline)
    if after is None:
        others = [g["after"] for g in _comparable(gains) if is_base(g["before"], baseline)]
        after = others[-1] if others else None
    worse = [
        gain
        for gain in _comparable(gains)
        if gain["after"] == after and is_base(gain["before"], baseline) and gain["difference"] < 0 and not doubt(gain)
    ]
    worse.sort(key=lambda gain: gain["difference"])
    return [_tile(_place_name(gain), gain) for gain in worse[:LOSSES]]


def _comparable(gains: Sequence[Gain]) -> list[Gain]:
    """The differences, without ratios and without what cannot be compared."""
    return [gain for gain in gains if gain.get("kind") != "ratio" and is_comparable(gain)]


def _place_name(gain: Gain) -> str:
    return f"reading {gain['cell']}" if gain["kind"] == "perception" else str(gain["cell"])


def losses_sentence(found: Sequence[Mapping[str, str]]) -> str:
    """What got worse, in one sentence as prominent as the headline; "" for nothing."""
    if not found:
        return ""
    return "Got worse: " + "; ".join(f"{tile['label']} {tile['value']} points ({tile['note']})" for tile in found) + "."


def compared_with(run: Run) -> str:
    """Which stage the others are compared with, and why that one; "" without comparisons."""
    befores = [gain["before"] for gain in run.summary.get("gains") or [] if is_base(gain["before"], run.baseline)]
    design = f" {designed(run.summary.get('gains') or [])}".rstrip()
    if run.baseline is not None:
        return f"Compared with {run.baseline} ({run.reason}; report --baseline STAGE chooses another).{design}"
    bases = list(dict.fromkeys(befores))
    return f"Compared with the better of the bases: {', '.join(bases)}.{design}" if bases else ""


def headline(gains: Sequence[Gain], baseline: str | None = None) -> str:
    """One sentence: what text-only post-training did to pictures, beside what it did to text; without a base, how the
    first of the other models stands to the one that it is compared with.
    """
    after = final_stage(gains, baseline)
    cells = over_base(gains, "cell", after, baseline)
    image = {cell.split("/")[1]: gain for cell, gain in cells.items() if cell.startswith("image/")}
    text = {cell.split("/")[1]: gain for cell, gain in cells.items() if cell.startswith("text/")}
    if not image and not text and not_compared(of_kind(gains, "cell")):
        return "The stages were measured differently, so post-training cannot be judged."
    if not image and not text:
        return "No reasoner has been evaluated beside the base yet, so post-training cannot be judged."
    opening = _opening(str(after), next(iter(cells.values()))["before"])
    if not image:
        return f"{opening} moved accuracy on text by {_points(text)}; no image has been evaluated yet."
    clauses = " and ".join(_clause(domain, gain) for domain, gain in _general_first(image))
    beside = f"; on the same problems as text the change was {_points(text)}" if text else ""
    return f"{opening} {_verb(list(image.values()))} accuracy on images: {clauses}{beside}."


def _opening(after: str, before: str) -> str:
    """What is said to have moved the numbers: post-training where a base stands before it, else the other model."""
    if before.partition("@")[0] not in BASES:
        return f"Compared with {before}, {after}"
    how = "SFT, then RL" if after == "sft+rl" else "SFT" if after == "sft" else after
    return f"Post-training on text alone ({how})"


def _general_first(found: Mapping[str, Gain]) -> list[tuple[str, Gain]]:
    return sorted(found.items(), key=lambda pair: (pair[0] != "general", pair[0]))


def _verb(gains: Sequence[Gain]) -> str:
    """The weakest verb that holds for all of them."""
    kinds = {0 if doubt(gain) else 1 if gain["difference"] > 0 else -1 for gain in gains}
    if kinds == {1}:
        return "raised"
    if kinds == {-1}:
        return "lowered"
    return "made no distinguishable difference to" if kinds == {0} else "changed in different directions"


def _clause(domain: str, gain: Gain) -> str:
    """One domain's numbers, with what weakens them."""
    inside = f"{signed(gain['difference'])} points, 95\u00a0% interval {interval(gain['low'], gain['high'])}"
    above = gain.get("above_blind")
    if doubt(gain):
        inside += ", not distinguishable"
    elif gain["difference"] > 0 and above is not None and above <= 0:
        inside += ", but no better than without the image"
    return f"{domain} from {percent(gain['accuracy_before'])} to {percent(gain['accuracy_after'])}\u00a0% ({inside})"


def _points(text: Mapping[str, Gain]) -> str:
    """The differences on text, such as +66.0 (general) and +55.1 points (clinical)."""
    parts = [
        f"{signed(gain['difference'])} ({domain}{', not distinguishable' if doubt(gain) else ''})"
        for domain, gain in _general_first(text)
    ]
    return " and ".join(parts) + " points"


def tiles(gains: Sequence[Gain], baseline: str | None = None) -> list[dict[str, str]]:
    """The four numbers to remember: label, value, and a note with the interval."""
    after = final_stage(gains, baseline)
    found = []
    for domain, gain in over_base(gains, "cell", after, baseline).items():
        if domain.startswith("image/"):
            found.append(_tile(f"Images, {domain.split('/')[1]}", gain))
    found.sort(key=lambda tile: not tile["label"].endswith("general"))
    for gain in of_kind(gains, "ratio"):
        if gain["after"] == after and gain["domain"] == "general":
            found.append({"label": "Image gain ÷ text gain, general", **ratio(gain)})
    for cell, gain in over_base(gains, "perception", after, baseline).items():
        if cell == "image/general":
            found.append(_tile("Reading of images, general", gain))
    return found


def _tile(label: str, gain: Gain) -> dict[str, str]:
    unsure = doubt(gain)
    note = f"{percent(gain['accuracy_before'])} → {percent(gain['accuracy_after'])} %; 95 %: "
    note += interval(gain["low"], gain["high"])
    if gain.get("above_blind") is not None:
        note += f"; {signed(gain['above_blind'])} above the blind floor"
    return {"label": label, "value": signed(gain["difference"]), "note": note, "unsure": unsure}


def ratio(gain: Gain) -> dict[str, str]:
    """A ratio of gains in words; an unbounded one says why."""
    if gain.get("differs"):
        return {"value": "—", "note": f"not comparable: {differing(gain)}", "unsure": "not comparable"}
    if gain["ratio"] is None:
        return {"value": "—", "note": "the text gain is 0, so there is no ratio", "unsure": "undefined"}
    if gain["low"] is None or gain["high"] is None:
        return {"value": f"{gain['ratio']:.2f}", "note": "unbounded: the text gain may be 0", "unsure": "unbounded"}
    return {"value": f"{gain['ratio']:.2f}", "note": f"95 %: {gain['low']:.2f} to {gain['high']:.2f}", "unsure": ""}


def protocol(run: Run) -> list[dict[str, Any]]:
    """One line for each number of the summary: where its items come from and how they were asked."""
    places = {stage: with_cells(rows) for stage, rows in run.rows.items()}
    lines = []
    for group in GROUPS:
        for stage in run.stages:
            for name, entry in (run.summary.get(group, {}).get(stage) or {}).items():
                rows = places.get(stage, {}).get((group, name), [])
                lines.append({"group": group, "name": name, "stage": stage, "entry": entry, **_asked(rows)})
    return lines


def _asked(rows: Sequence[Row]) -> dict[str, Any]:
    """What the results themselves say of how they came about."""
    seen = [row for row in rows if condition_of(row) == "seen"]
    if not seen:
        names = ("bench", "split", "prompt", "seed", "samples", "model", "sampling", "interval", "budget", "modality",
                 "temperature", "answer_budget", "exit_text", "images", "grader")  # fmt: skip
        blank = dict.fromkeys(names, "")
        return {**blank, "items": "results not in this folder"}
    benches, samples = list(dict.fromkeys(row["bench"] for row in seen)), 1 + max(row.get("sample", 0) for row in seen)
    return {
        "bench": ", ".join(benches),
        "split": "; ".join(dict.fromkeys(_source(bench) for bench in benches)),
        "items": _items(seen),
        "prompt": _distinct(seen, "prompt"),
        "seed": _distinct(seen, "seed"),
        "samples": samples,
        "model": _distinct(seen, "model", 12),
        "sampling": _distinct(seen, "sampling", 12),
        "budget": _distinct(seen, "thinking_budget"),
        "temperature": _distinct(seen, "temperature"),
        "answer_budget": _distinct(seen, "answer_budget"),
        "exit_text": _distinct(seen, "exit_text"),
        "images": _image_sizes(seen),
        "grader": _distinct(seen, "grader"),
        "modality": seen[0]["modality"],
        "interval": "Wilson" if samples == 1 else "bootstrap by item",
    }


def _image_sizes(rows: Sequence[Row]) -> str:
    """Between how many pixels images were, and by which preprocessing; "" without images, or where no row says."""
    shown = [row for row in rows if has_images(row) and "max_pixels" in row]
    sizes = dict.fromkeys((row["min_pixels"], row["max_pixels"], row["preprocessing"]) for row in shown)
    return ", ".join(f"{_limit(least)}–{_limit(most)} pixels, {how}" for least, most, how in sizes)


def _limit(pixels: int | None) -> str:
    return "own" if pixels is None else f"{pixels:,}"


def _source(bench: str) -> str:
    """Where a benchmark's items come from, down to revision, split and filter."""
    entry = TABLE.get(bench)
    if bench in SPLITS or entry is None:
        fresh = "fresh items and drawings from the evaluation's seed"
        return SPLITS.get(bench, "" if group_of(bench)[0] == "benchmarks" else fresh)
    parts = [f"{entry.hub}@{entry.revision}", entry.config, entry.split, f"where {entry.where}" if entry.where else ""]
    return " ".join(part for part in parts if part)


def _items(rows: Sequence[Row]) -> str:
    """How many items, and a hash of their names: the same items have the same, in whatever order they were finished."""
    names = sorted({f"{row['bench']}/{row['id']}" for row in rows})
    return f"{len(names)} items, {hashlib.sha256(chr(10).join(names).encode()).hexdigest()[:8]}"


def asked(lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line for each benchmark and choice of its items, with the stages that were asked them."""
    same = ("group", "name", "bench", "split", "items", "seed")
    found: dict[tuple[Any, ...], list[str]] = {}
    for line in lines:
        found.setdefault(tuple(line[key] for key in same), []).append(line["stage"])
    return [{**dict(zip(same, key, strict=True)), "stages": ", ".join(stages)} for key, stages in found.items()]


def _distinct(rows: Sequence[Row], name: str, most: int = 80) -> str:
    return ", ".join(dict.fromkeys(str(row[name])[:most] for row in rows if name in row))


def frozen(run: Run) -> list[dict[str, Any]]:
    """For each trained stage: the hashes of the frozen tensors before and after, and what text it learnt from."""
    lines = []
    for stage, manifest in run.manifests.items():
        proof = manifest.get("frozen")
        if not proof:
            continue
        before, after = proof.get("before"), proof.get("after")
        state = "unfinished" if not (before and after) else "equal" if before == after else "differs"
        lines.append(
            {
                "stage": stage,
                "tensors": proof.get("tensors"),
                "before": before or "—",
                "after": after or "—",
                "state": state,
                "pictures": manifest.get("pictures"),
                "domains": ", ".join(map(str, manifest.get("domains") or [])) or "—",
                "problems": sum((manifest.get("problems") or {}).values()) or None,
            }
        )
    return lines


def learnt_from(lines: Sequence[Mapping[str, Any]]) -> str:
    """The domains of the text that all stages learnt from, or "" unless every manifest says: no picture."""
    if not lines or any(line["pictures"] != 0 for line in lines):
        return ""
    return " and ".join(dict.fromkeys(line["domains"] for line in lines))


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested mapping as lines of (path, value)."""
    if isinstance(value, Mapping):
        return [
            line for key, inner in value.items() for line in flat(inner, f"{prefix} · {key}" if prefix else str(key))
        ]
    if isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        named = [(inner.get("name", i) if isinstance(inner, Mapping) else i, inner) for i, inner in enumerate(value)]
        return [line for name, inner in named for line in flat(inner, f"{prefix} · {name}")]
    if isinstance(value, list):
        return [(prefix, ", ".join(map(str, value)) or "—")]
    if isinstance(value, float) and not isinstance(value, bool):
        return [(prefix, f"{value:.6g}")]
    return [(prefix, "—" if value is None else str(value))]
