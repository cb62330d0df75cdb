"""What results show: accuracies by place, gains paired on the items, how replies ended, what blindness explains.

A benchmark named `tiny-MODALITY-DOMAIN` is a cell of the transfer matrix, `tiny-read-MODALITY-DOMAIN` measures
perception in that cell, and any other stands for itself. Where a stage has none of these cells, the declared benchmarks
that it was measured on make them: of each modality and domain the mean over its benchmarks (macro-average), in which no
item counts twice. Inference is by cluster: items of one problem or about one image are one piece of evidence.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from xreasoner.benchmarks import parsers, protocol, statistics
from xreasoner.benchmarks.samples import by_item, ensemble, majority, pass_at
from xreasoner.benchmarks.store import Condition, Row, cluster_of, condition_of
from xreasoner.benchmarks.table import CLOSED_AND_OPEN, CONTAINED_IN, MACRO_F1, MEANS, TABLE

BASES = ("base", "base-direct")
REASONERS = ("sft", "sft+rl")
GROUPS = ("cells", "perception", "benchmarks")
CONDITIONS: tuple[Condition, ...] = ("seen", "blind", "swapped")
EXITS = ("natural", "forced", "truncated")
Item = tuple[str, str]
"""(benchmark, the problem's id)."""
Place = tuple[str, str]
"""(group, its name there); see `group_of`."""


class Score(NamedTuple):
    """An item's mean correctness, and its cluster."""

    value: float
    cluster: str


Scores = Mapping[Item, Score]
_CELL = re.compile(r"tiny-(read-)?(text|image)-([a-z]+)")


@lru_cache(maxsize=1024)
def group_of(bench: str) -> tuple[str, str]:
    """Where a benchmark's number stands in the summary: ("cells" | "perception" | "benchmarks", its name there)."""
    match = _CELL.fullmatch(bench)
    if match is None:
        return "benchmarks", bench
    return "perception" if match[1] else "cells", f"{match[2]}/{match[3]}"


def place_of(row: Row) -> Place:
    """Where a row counts: `group_of` its benchmark; of medical visual questions "NAME (closed)" or "NAME (open)"."""
    group, name = group_of(row["bench"])
    return (group, f"{name} ({row['family']})") if row["bench"] in CLOSED_AND_OPEN else (group, name)


def by_place(results: Sequence[Row]) -> dict[Place, list[Row]]:
    groups: dict[Place, list[Row]] = {}
    for row in results:
        groups.setdefault(place_of(row), []).append(row)
    return groups


def with_cells(results: Sequence[Row]) -> dict[Place, list[Row]]:
    """`by_place`, the means that benchmarks' authors report, and the cells that declared benchmarks make if the
    embedded world made none."""
    groups = by_place(results)
    for name, parts in MEANS.items():
        members = [groups.get(("benchmarks", part)) for part in parts]
        if all(members):
            groups["benchmarks", name] = [row for rows in members if rows for row in rows]
    if any(group == "cells" for group, _ in groups):
        return groups
    counted = _counted_once(results)
    for row in results:
        closed = row["bench"] not in CLOSED_AND_OPEN or row["family"] == "closed"
        if row["bench"] in TABLE and closed and (row["bench"], row["id"]) in counted:
            groups.setdefault(("cells", f"{row['modality']}/{row['domain']}"), []).append(row)
    return groups


def _counted_once(results: Sequence[Row]) -> set[Item]:
    """The items of declared benchmarks that cells count: of a part and its whole in one cell the whole, in two cells
    the whole without the part's items."""
    measured: dict[str, set[str]] = {}
    for row in results:
        measured.setdefault(row["bench"], set()).add(row["id"])
    for part, whole in CONTAINED_IN.items():
        if part in measured and whole in measured:
            if TABLE[part].domain == TABLE[whole].domain:
                measured[part] = set()
            else:
                measured[whole] -= measured[part]
    return {(bench, name) for bench, names in measured.items() for name in names}


def _accuracy(rows: Sequence[Row]) -> statistics.Estimate:
    """Over all rows; of several benchmarks the mean of theirs."""
    correct, clusters = [row["correct"] for row in rows], [(row["bench"], cluster_of(row)) for row in rows]
    benches = [row["bench"] for row in rows]
    if len(set(benches)) == 1:
        return statistics.accuracy(correct, clusters)
    return _as_share(statistics.macro_mean(correct, clusters, benches))


def _as_share(estimate: statistics.Estimate) -> statistics.Estimate:
    return estimate._replace(low=max(0.0, estimate.low), high=min(1.0, estimate.high))


def _describe(rows: Sequence[Row], blind: Sequence[Row]) -> dict[str, Any]:
    """One entry of the summary. Shares are of the rows with their pictures; outcomes are counts."""
    estimate = _accuracy(rows)
    families: dict[str, list[Row]] = {}
    for row in rows:
        families.setdefault(row["family"], []).append(row)
    described: dict[str, Any] = {
        "accuracy": estimate.value,
        "n": len(rows),
        "clusters": len({(row["bench"], cluster_of(row)) for row in rows}),
        "low": estimate.low,
        "high": estimate.high,
        "forced": sum(row["exit"] == "forced" for row in rows) / len(rows),
        "truncated": sum(row["exit"] == "truncated" for row in rows) / len(rows),
        "thought_tokens": sum(row["thought_tokens"] for row in rows) / len(rows),
        "outcomes": dict(Counter(row["outcome"] for row in rows)),
        "families": {
            name: {"accuracy": _accuracy(members).value, "n": len(members)}
            for name, members in sorted(families.items())
        },
    }
    benches = {row["bench"] for row in rows}
    if len(benches) == 1 and (answers := MACRO_F1.get(rows[0]["bench"])):
        predictions = [row["gold"] if row["correct"] else row["normalised"] for row in rows]
        described["macro_f1"] = statistics.macro_f1([row["gold"] for row in rows], predictions, answers)
    if benches <= set(CLOSED_AND_OPEN) and all(row["family"] == "open" for row in rows):
        described["recall"] = sum(_recall(row) for row in rows) / len(rows)
    if blind:
        floor = _accuracy(blind)
        described |= {"blind": floor.value, "blind_n": len(blind), "blind_low": floor.low, "blind_high": floor.high}
        for name, entry in described["families"].items():
            unseen = [row for row in blind if row["family"] == name]
            if unseen:
                entry["blind"] = _accuracy(unseen).value
    return described


def _recall(row: Row) -> float:
    """The share of the gold's words that the answer has (LLaVA-Med's measure for open questions)."""
    wanted, given = (Counter(re.findall(r"\w+", str(text).casefold())) for text in (row["gold"], row["answer"]))
    return (wanted & given).total() / wanted.total() if wanted else 0.0


def summarise(results: Sequence[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """What one stage's results show: {"cells": {CELL: …}, "perception": {CELL: …}, "benchmarks": {NAME: …}}.

    Each entry holds accuracy, n, clusters, low, high (95 %), the shares `forced` and `truncated`, mean
    `thought_tokens`, `outcomes` (counts), `families`, and, if there are blind rows, `blind` (accuracy) with its n and
    interval. PubMedQA has `macro_f1` as well, open medical visual questions `recall`.
    """
    summary: dict[str, dict[str, dict[str, Any]]] = {group: {} for group in GROUPS}
    for (group, name), rows in with_cells(results).items():
        seen = under(rows, "seen")
        if seen:
            summary[group][name] = _describe(seen, under(rows, "blind"))
    return summary


def under(rows: Sequence[Row], condition: Condition) -> list[Row]:
    """The rows of one condition."""
    return [row for row in rows if condition_of(row) == condition]


def _by_item(rows: Sequence[Row], condition: Condition = "seen") -> dict[Item, Score]:
    """Mean correctness of each item."""
    found: dict[Item, list[bool]] = {}
    clusters: dict[Item, str] = {}
    for row in rows:
        if condition_of(row) == condition:
            item = row["bench"], row["id"]
            found.setdefault(item, []).append(row["correct"])
            clusters.setdefault(item, cluster_of(row))
    return {item: Score(sum(values) / len(values), clusters[item]) for item, values in found.items()}


def _mean(items: Scores) -> float:
    """Over items; of several benchmarks the mean of theirs."""
    if not items:
        return 0.0
    benches: dict[str, list[float]] = {}
    for (bench, _), score in items.items():
        benches.setdefault(bench, []).append(score.value)
    return sum(sum(values) / len(values) for values in benches.values()) / len(benches)


def _difference(after: Scores, before: Scores) -> dict[str, Any] | None:
    """After − before on the items that both have, or None where there are none."""
    shared = [item for item in after if item in before]
    if not shared:
        return None
    a, b = [after[item].value for item in shared], [before[item].value for item in shared]
    clusters, benches = [(item[0], after[item].cluster) for item in shared], [item[0] for item in shared]
    differences = [x - y for x, y in zip(a, b, strict=True)]
    several = len(set(benches)) > 1
    if several:
        estimate = statistics.macro_mean(differences, clusters, benches)
    else:
        estimate = statistics.paired_difference(a, b, clusters)
    single = len(set(clusters)) == len(shared) and all(value in (0.0, 1.0) for value in [*a, *b]) and not several
    discordant = sum(map(abs, differences)) / len(shared)
    n_clusters = len(set(clusters))
    return {
        "n": len(shared),
        "clusters": n_clusters,
        "accuracy_after": _mean({item: after[item] for item in shared}),
        "accuracy_before": _mean({item: before[item] for item in shared}),
        "difference": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "p": statistics.mcnemar(a, b) if single else statistics.sign_flips(a, b, clusters, benches),
        "test": "McNemar, exact" if single else "sign flips by cluster",
        "detectable": statistics.detectable_paired(
            len(shared),
            discordant,
            clusters=n_clusters,
            design=statistics.design_effect(differences, clusters),
        ),
    }


def folder_of(stage: str) -> str:
    """From which of several runs a stage is: the part after "@", "" for the first or only one."""
    return stage.partition("@")[2]


def _best_base(stages: Mapping[str, Scores]) -> str | None:
    """The more accurate of the bases that answer directly: the stronger control."""
    bases = [stage for stage in stages if stage.partition("@")[0] in BASES and stages[stage]]
    return max(bases, key=lambda stage: _mean(stages[stage]), default=None)


def _pairs(stages: Mapping[str, Scores], group: str, baseline: str | None = None) -> list[tuple[str, str]]:
    """(after, before) of one place: every stage over the baseline where one is named, and RL over SFT; otherwise
    within each run as `_pairs_within` says, then each run's stage over the first's.
    """
    if baseline is not None and stages.get(baseline):
        pairs = [(stage, baseline) for stage in stages if stages[stage] and stage != baseline]
        sft, rl = (next((s for s in stages if s.partition("@")[0] == name and stages[s]), None) for name in REASONERS)
        return [*pairs, (rl, sft)] if sft and rl and baseline != sft and folder_of(sft) == folder_of(rl) else pairs
    folders = dict.fromkeys(folder_of(stage) for stage in stages)
    pairs = []
    for folder in folders:
        own = {stage: items for stage, items in stages.items() if folder_of(stage) == folder}
        own |= {base: stages[base] for base in BASES if base in stages and f"{base}@{folder}" not in stages}
        pairs += _pairs_within(own, group, f"@{folder}" if folder else "")
    for stage in stages:
        first = stage.partition("@")[0]
        if folder_of(stage) and stages[stage] and stages.get(first):
            pairs.append((stage, first))
    return pairs


def _pairs_within(stages: Mapping[str, Scores], group: str, suffix: str) -> list[tuple[str, str]]:
    """Each reasoner over the better base (perception: over the base itself), RL over SFT; any other model over that
    base, or, without one, over the first model.
    """
    named = {stage: items for stage, items in stages.items() if items}
    plain = {base: named[base] for base in ("base", f"base{suffix}") if base in named}
    plain = plain if group == "perception" else named
    before = _best_base(plain)
    others = [stage for stage in named if stage.partition("@")[0] not in (*BASES, *REASONERS)]
    reasoners = [f"{stage}{suffix}" for stage in REASONERS if f"{stage}{suffix}" in named]
    if before is not None:
        pairs = [(stage, before) for stage in [*reasoners, *others]]
    else:
        pairs = [(stage, others[0]) for stage in others[1:]]
    if len(reasoners) == len(REASONERS):
        pairs.append((reasoners[1], reasoners[0]))
    return pairs


def _of_items(rows: Sequence[Row], items: Container[Item]) -> list[Row]:
    """The rows with their images of these items."""
    return [row for row in under(rows, "seen") if (row["bench"], row["id"]) in items]


NOT_COMPARED = ("difference", "low", "high", "p", "p_holm", "detectable", "test")
"""What a comparison of numbers that were measured differently does not have."""


def _compared(entry: dict[str, Any], after: Sequence[Row], before: Sequence[Row]) -> dict[str, Any]:
    """A difference with what its protocols differ in; without the difference itself where they differ undeclared."""
    found = protocol.compare(after, before)
    declared = protocol.by_design(found, after, before)
    asked = protocol.BY_DESIGN if declared else "; ".join(map(str, found)) or "alike"
    entry = {**entry, "differs": [each._asdict() for each in found], "control": declared, "asked": asked}
    return entry if declared or not found else {**entry, **dict.fromkeys(NOT_COMPARED)}


def places_of(grouped: Mapping[str, Mapping[Place, Any]]) -> list[Place]:
    """The places that any stage has, group by group."""
    found = {key for groups in grouped.values() for key in groups}
    return sorted(found, key=lambda key: (GROUPS.index(key[0]), key[1]))


def gains(results_by_stage: Mapping[str, Sequence[Row]], baseline: str | None = None) -> list[dict[str, Any]]:
    """What each stage added, paired on the items. baseline: the stage that all others are compared with.

    Like is compared with like: where the protocols of both (`protocol.compare`) differ, the entry has no difference
    but what they differ in. The prompt of a declared control may differ by design.

    Entries of kind "cell", "perception" and "benchmark": {"kind", "cell" (or the benchmark's name), "after",
    "before" (stages), "n", "clusters", "accuracy_after", "accuracy_before", "difference", "low", "high" (95 %), "p" and
    "test" (exact McNemar; with several samples an item or several items a cluster, sign flips by cluster), "p_holm"
    (Holm's adjustment over all these entries),
    "differs" ([{"field", "after", "before"}]), "control" (whether they differ by design), "asked" ("alike", or both
    in words); with an undeclared difference "difference", "low", "high", "p", "p_holm", "detectable" and "test" are
    None,
    "detectable" (the smallest difference these items show with power 0.8), and for image cells with blind rows
    "above_blind" (accuracy after − the larger of the accuracy before and the blind floor)}. Entries of kind
    "ratio": {"kind", "cell" (the domain), "domain", "after", "before", "ratio", "low", "high", "differs"}, None where
    undefined, unbounded or not comparable. `before` is the better base. Stages of a second run are named STAGE@RUN.
    """
    grouped = {stage: with_cells(rows) for stage, rows in results_by_stage.items()}
    found: list[dict[str, Any]] = []
    for group, name in places_of(grouped):
        stages = {stage: _by_item(groups.get((group, name), [])) for stage, groups in grouped.items()}
        for after, before in _pairs(stages, group, baseline):
            entry = _difference(stages[after], stages[before])
            if entry is None:
                continue
            shared = stages[after].keys() & stages[before].keys()
            sides = [_of_items(grouped[stage].get((group, name), []), shared) for stage in (after, before)]
            entry = _compared(entry, *sides)
            blind = _by_item(_alike_blind(grouped[after].get((group, name), [])), "blind")
            if blind and entry["difference"] is not None:
                floor = max(entry["accuracy_before"], _mean(blind))
                entry["above_blind"] = entry["accuracy_after"] - floor
            kind = group.removesuffix("s")
            found.append({"kind": kind, "cell": name, "after": after, "before": before, **entry})
    tested = [entry for entry in found if entry["p"] is not None]
    for entry, adjusted in zip(tested, statistics.holm([entry["p"] for entry in tested]), strict=True):
        entry["p_holm"] = adjusted
    return found + _ratios(grouped, baseline)


def _alike_blind(rows: Sequence[Row]) -> Sequence[Row]:
    """The blind rows, where they were asked as those with their images were; else none."""
    blind, seen = under(rows, "blind"), under(rows, "seen")
    return [] if blind and protocol.differences(_text_side(seen), _text_side(blind)) else blind


def _text_side(rows: Sequence[Row]) -> list[Row]:
    """Rows as if they had been asked without images, whose size is then no part of the protocol."""
    return [{**row, "picture_hashes": [], "images": [], "image": None} for row in rows]


def summary_of(results_by_stage: Mapping[str, Sequence[Row]], baseline: str | None = None) -> dict[str, Any]:
    """What summary.json says of results: {"cells" | "perception" | "benchmarks": {stage: {name: {}}}, "gains": [],
    "sight": [], "solvable": [], "exits": [], "samples": [], "budgets": [], "parsers": []}; see `summarise`, `gains`,
    `sight`, `solvable`, `exits`, `sampled`, `budgets` and `spread`.

    Where a stage was measured under several protocols, all but `samples`, `budgets` and `solvable` speak of
    `main_rows`.
    """
    main = main_of(results_by_stage)
    found: dict[str, Any] = {group: {} for group in GROUPS}
    for stage, rows in main.items():
        for group, entries in summarise(rows).items():
            found[group][stage] = entries
    found |= {"gains": gains(main, baseline), "sight": sight(main), "solvable": solvable(results_by_stage)}
    found |= {"exits": exits(main), "samples": sampled(results_by_stage), "budgets": budgets(results_by_stage)}
    return {**found, "parsers": spread(main)}


Protocol = tuple[Any, ...]
"""What rows that count together were asked with: prompt, sampling, and the size of images."""


def main_of(results_by_stage: Mapping[str, Sequence[Row]]) -> dict[str, list[Row]]:
    """`main_rows` of every stage, those asked alike preferred that the most stages have."""
    users: Counter[tuple[str, Protocol]] = Counter()
    for rows in results_by_stage.values():
        last = _last(rows)
        users.update({(row["bench"], key) for row in last for key in (_asked_with(row), _sampled_with(row))})
    return {stage: main_rows(rows, users) for stage, rows in results_by_stage.items()}


def _sampled_with(row: Row) -> Protocol:
    return (row["sampling"],)


def _asked_with(row: Row) -> Protocol:
    """Prompt and sampling. Left to the benchmark, the prompt follows from the item's options."""
    return row.get("prompt_asked", row["prompt"]), row["sampling"]


def _image_size(row: Row) -> Protocol:
    return tuple(row.get(name) for name in protocol.ImageSettings._fields)


def _last(rows: Sequence[Row]) -> list[Row]:
    """Of each benchmark the rows of the model that was measured last."""
    last = {row["bench"]: row["model"] for row in rows}
    return [row for row in rows if row["model"] == last[row["bench"]]]


def main_rows(rows: Sequence[Row], users: Mapping[tuple[str, Protocol], int] | None = None) -> list[Row]:
    """Of each benchmark and condition the rows of one protocol (prompt, sampling, image size) and of the model that was
    measured last: the protocol that the most stages have (`users`), with the most items, greedy before sampled, the
    later of equals. Without images, or with others', that of the measurement with them where it is there.
    """
    protocols: dict[tuple[str, str], dict[Protocol, list[Row]]] = {}
    for row in _last(rows):
        settings = protocols.setdefault((row["bench"], condition_of(row)), {})
        settings[_asked_with(row)] = settings.pop(_asked_with(row), [])  # the last to be written stands last
        settings[_asked_with(row)].append(row)
    chosen: dict[str, Protocol] = {}
    found = []
    for (bench, condition), settings in sorted(protocols.items(), key=lambda pair: pair[0][1] != "seen"):
        names = list(settings)
        ranks = [(*_rank(settings[name], users or {}), k) for k, name in enumerate(names)]
        asked = chosen[bench] if chosen.get(bench) in settings else names[max(ranks)[-1]]
        if condition == "seen":
            chosen[bench] = asked
        found += _one_image_size(settings[asked])
    return found


def _one_image_size(rows: Sequence[Row]) -> list[Row]:
    """The rows without images, and those with images of one size: the size with the most items, the later of equals."""
    sizes: dict[Protocol, set[str]] = {}
    for row in filter(protocol.has_images, rows):
        sizes[_image_size(row)] = sizes.pop(_image_size(row), set()) | {row["id"]}
    size = max(reversed(list(sizes)), key=lambda each: len(sizes[each]), default=None)
    return [row for row in rows if not protocol.has_images(row) or _image_size(row) == size]


def _rank(rows: Sequence[Row], users: Mapping[tuple[str, Protocol], int]) -> tuple[int, int, int, bool]:
    bench, first = rows[0]["bench"], rows[0]
    alike = [users.get((bench, key), 0) for key in (_asked_with(first), _sampled_with(first))]
    return alike[0], alike[1], len({row["id"] for row in rows}), not first.get("temperature")


def _estimate(estimate: statistics.Estimate, n: int) -> dict[str, Any]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high, "n": n}


def _share(items: Scores) -> dict[str, Any] | None:
    """Mean over items with its interval: {"value", "low", "high", "n"}."""
    if not items:
        return None
    values = [score.value for score in items.values()]
    clusters, benches = [(item[0], score.cluster) for item, score in items.items()], [item[0] for item in items]
    if len(set(benches)) > 1:
        found = statistics.macro_mean(values, clusters, benches)
    elif len(set(clusters)) == len(values) and all(value in (0.0, 1.0) for value in values):
        found = statistics.wilson(sum(values), len(values))
    else:
        found = statistics.paired_difference(values, [0.0] * len(values), clusters)
    return _estimate(_as_share(found), len(values))


def sight(results_by_stage: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """What the pictures were good for, for each place and stage that was also asked without or with another's picture.

    Entries: {"group", "name", "stage", and as {"value", "low", "high", "n"} or None: "seen", "blind", "swapped"
    (accuracies), "over_blind", "over_swapped" (seen minus that, paired, if both were asked alike), "missed" (accuracy
    with the picture on the items that no stage ever gets right without it: the same items for every stage)}.
    """
    found = []
    places = {stage: by_place(rows) for stage, rows in results_by_stage.items()}
    unsolved = _never_solved_blind(places)
    for stage, groups in places.items():
        for (group, name), members in groups.items():
            seen, blind, swapped = (_by_item(members, condition) for condition in CONDITIONS)
            alike = _by_item(_alike_blind(members), "blind")
            if seen and (blind or swapped):
                missed = {item: score for item, score in seen.items() if item in unsolved.get((group, name), ())}
                entry = {"group": group, "name": name, "stage": stage, "seen": _share(seen), "blind": _share(blind)}
                entry |= {"swapped": _share(swapped), "missed": _share(missed)}
                entry |= {"over_blind": _over(seen, alike), "over_swapped": _over(seen, swapped)}
                found.append(entry)
    return found


def _never_solved_blind(places: Mapping[str, Mapping[Place, Sequence[Row]]]) -> dict[Place, set[Item]]:
    """Of each place the items that every stage asked there without its picture was asked, and none ever got right."""
    found: dict[Place, set[Item]] = {}
    for groups in places.values():
        for place, members in groups.items():
            blind = _by_item(members, "blind")
            if blind:
                unsolved = {item for item, score in blind.items() if score.value == 0}
                found[place] = found[place] & unsolved if place in found else unsolved
    return found


def _over(after: Scores, before: Scores) -> dict[str, Any] | None:
    difference = _difference(after, before)
    if difference is None:
        return None
    return {"value": difference["difference"], **{key: difference[key] for key in ("low", "high", "n")}}


def text_solvable(results_by_stage: Mapping[str, Sequence[Row]], samples: int = 3) -> tuple[set[Item], set[Item]]:
    """(items that can be told, items solved without their picture): those of which some model gave so many sampled
    blind answers, and among them those where all of some model's first `samples` were right (the paper's filter).

    Further samples change nothing: a filter of all answers would keep more items the more were drawn.
    """
    asked, solved = set[Item](), set[Item]()
    for rows in results_by_stage.values():
        replies: dict[Item, list[bool]] = {}
        for row in under(rows, "blind"):
            if row.get("temperature") and row["sample"] < samples:
                replies.setdefault((row["bench"], row["id"]), []).append(row["correct"])
        asked |= {item for item, right in replies.items() if len(right) >= samples}
        solved |= {item for item, right in replies.items() if len(right) >= samples and all(right)}
    return asked, solved


def solvable(results_by_stage: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """Accuracy with and without the text-solvable items, for each place where three sampled blind answers an item are
    there: {"group", "name", "stage", "all", "kept" (as {"value", "low", "high", "n"})}.
    """
    asked, solved = text_solvable(results_by_stage)
    found: list[dict[str, Any]] = []
    for stage, rows in results_by_stage.items():
        for (group, name), members in by_place(main_rows(rows)).items():
            seen = {item: value for item, value in _by_item(members).items() if item in asked}
            if seen:
                kept = {item: value for item, value in seen.items() if item not in solved}
                entry = {"group": group, "name": name, "stage": stage}
                found.append({**entry, "all": _share(seen), "kept": _share(kept)})
    return found


def exits(results_by_stage: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """How replies ended, for each place and stage: {"group", "name", "stage", "n", "natural", "forced", "truncated"
    (shares), "accuracy_by_exit" ({exit: accuracy}), "with_exit", "without_exit" ({"value", "low", "high", "n"};
    without a forced exit every thought that the engine closed would have been cut off, so it counts as not
    correct), "gained" (with − without, paired), "thought_tokens" ({"mean", "median", "p90"})}.
    """
    found = []
    for stage, rows in results_by_stage.items():
        for (group, name), members in by_place(rows).items():
            seen = under(members, "seen")
            if seen:
                found.append({"group": group, "name": name, "stage": stage, **_exits(seen)})
    return found


def _exits(rows: Sequence[Row]) -> dict[str, Any]:
    ended = {exit: [row for row in rows if row["exit"] == exit] for exit in EXITS}
    without = [{**row, "correct": row["correct"] and row["exit"] == "natural"} for row in rows]
    lengths = sorted(row["thought_tokens"] for row in rows)
    gained = _over(_by_item(rows), _by_item(without))
    assert gained is not None
    return {
        "n": len(rows),
        **{exit: len(members) / len(rows) for exit, members in ended.items()},
        "accuracy_by_exit": {exit: _accuracy(members).value for exit, members in ended.items() if members},
        "with_exit": _share(_by_item(rows)),
        "without_exit": _share(_by_item(without)),
        "gained": {**gained, "low": max(0.0, gained["low"])},  # a forced exit takes no answer away
        "thought_tokens": {
            "mean": sum(lengths) / len(lengths),
            "median": lengths[len(lengths) // 2],
            "p90": lengths[min(len(lengths) - 1, int(0.9 * len(lengths)))],
        },
    }


def sampled(results_by_stage: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """Several samples an item, for each place and stage that has them; greedy replies stand aside: {"group", "name",
    "stage", "samples" (K, the most of any item), "n" (items that have them all), "average" (avg@K as {"value", "low",
    "high", "n"}), "majority" (majority@K) and "pass" ({"k": pass@k}) alike}; see `samples.ensemble`.
    """
    found = []
    for stage, rows in results_by_stage.items():
        drawn = main_rows([row for row in under(rows, "seen") if row.get("temperature")])
        for (group, name), members in by_place(drawn).items():
            together = ensemble(members)
            if (k := together["samples"]) > 1:
                whole = {(some[0]["bench"], some[0]["id"]): some for some in by_item(members) if len(some) == k}
                right = {item: sum(bool(row["correct"]) for row in some) for item, some in whole.items()}
                cluster = {item: cluster_of(some[0]) for item, some in whole.items()}
                found.append(
                    {
                        "group": group,
                        "name": name,
                        "stage": stage,
                        "samples": k,
                        "n": len(whole),
                        "average": _share({item: Score(n / k, cluster[item]) for item, n in right.items()}),
                        "majority": _share(
                            {item: Score(majority(some), cluster[item]) for item, some in whole.items()}
                        ),
                        "pass": {
                            str(few): _share(
                                {item: Score(pass_at(few, k, n), cluster[item]) for item, n in right.items()}
                            )
                            for few in together["pass"]
                        },
                    }
                )
    return found


def spread(results_by_stage: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """`parsers.spread` of each stage's replies with their pictures, reading apart: {"stage", "kind", "n", …}."""
    found = []
    for stage, rows in results_by_stage.items():
        asked = [row for row in under(rows, "seen") if group_of(row["bench"])[0] != "perception"]
        found += [{"stage": stage, **entry} for entry in parsers.spread(asked)]
    return found


def budgets(results_by_stage: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """Accuracy against the thinking budget, where a stage was asked the same items under several: {"group", "name",
    "stage", "points": [{"budget" (tokens), "accuracy", "low", "high", "n", "forced", "truncated", "thought_tokens",
    "without_exit" (accuracy)}]}, on the items that all the budgets have in common.
    """
    found = []
    for stage, rows in results_by_stage.items():
        for (group, name), members in by_place(under(rows, "seen")).items():
            by_budget = _budget_curve(members)
            shared = (
                set.intersection(*({row["id"] for row in some} for some in by_budget.values())) if by_budget else ()
            )
            if len(by_budget) > 1 and shared:
                points = [
                    _point(budget, main_rows([row for row in by_budget[budget] if row["id"] in shared]))
                    for budget in sorted(by_budget)
                ]
                found.append({"group": group, "name": name, "stage": stage, "points": points})
    return found


def _budget_curve(rows: Sequence[Row]) -> dict[int, list[Row]]:
    """The rows of one model, prompt and temperature by their budgets: those that have the most budgets, then rows."""
    alike: dict[tuple[Any, ...], dict[int, list[Row]]] = {}
    for row in rows:
        if row.get("thinking_budget") is not None:
            asked = row["model"], row.get("prompt_asked", row["prompt"]), row.get("temperature")
            alike.setdefault(asked, {}).setdefault(row["thinking_budget"], []).append(row)
    return max(alike.values(), key=lambda curve: (len(curve), sum(map(len, curve.values()))), default={})


def _point(budget: int, rows: Sequence[Row]) -> dict[str, Any]:
    ended, estimate = _exits(rows), _accuracy(rows)
    return {
        "budget": budget,
        "accuracy": estimate.value,
        "low": estimate.low,
        "high": estimate.high,
        "n": len(rows),
        "forced": ended["forced"],
        "truncated": ended["truncated"],
        "thought_tokens": ended["thought_tokens"]["mean"],
        "without_exit": ended["without_exit"]["value"],
    }


def _ratios(grouped: Mapping[str, Mapping[Place, list[Row]]], baseline: str | None = None) -> list[dict[str, Any]]:
    """Image gain ÷ text gain over the baseline, or one control of the same run, or without a base over the first model,
    for each domain and reasoner. The control is the base with the higher mean of both accuracies: the same one above
    and below."""
    domains = {name.split("/")[1] for groups in grouped.values() for group, name in groups if group == "cells"}
    reasoners = [stage for name in REASONERS for stage in grouped if stage.partition("@")[0] == name]
    others = [stage for stage in grouped if stage.partition("@")[0] not in (*BASES, *REASONERS)]
    found: list[dict[str, Any]] = []
    for domain in sorted(domains, reverse=True):
        for after in [*reasoners, *others]:
            suffix = after.partition("@")[1] + folder_of(after)
            own = {name: groups for name, groups in grouped.items() if folder_of(name) == folder_of(after)}
            own |= {name: grouped[name] for name in BASES if name in grouped and f"{name}{suffix}" not in grouped}
            if baseline in grouped:
                own = {**own, str(baseline): grouped[str(baseline)]}
            entry = _ratio(own, domain, after, others, baseline)
            if entry is not None:
                found.append(entry)
    return found


def _ratio(
    grouped: Mapping[str, Mapping[Place, list[Row]]],
    domain: str,
    after: str,
    others: Sequence[str],
    baseline: str | None,
) -> dict[str, Any] | None:
    """One entry of `_ratios`; None where a side or the control is missing."""
    scores = {
        stage: [_by_item(groups.get(("cells", f"{modality}/{domain}"), [])) for modality in ("image", "text")]
        for stage, groups in grouped.items()
    }
    both = {stage: sides for stage, sides in scores.items() if all(sides)}
    named = [stage for stage in both if stage == baseline]
    bases = named or [stage for stage in both if stage.partition("@")[0] in BASES]
    before = max(bases, key=lambda stage: sum(map(_mean, both[stage])), default=next(iter(both), None))
    if before in (None, after) or after not in both:
        return None
    image, text = (_gains_of(a, b) for a, b in zip(both[after], both[before], strict=True))
    if not image or not text:
        return None
    control = before if bases else others[0]
    entry = {"kind": "ratio", "cell": domain, "domain": domain, "after": after, "before": control, "differs": []}
    differs = [
        each
        for modality, scored in zip(("image", "text"), both[after], strict=True)
        for each in _undeclared(grouped, f"{modality}/{domain}", after, str(before), scored)
    ]
    if differs:
        return {**entry, "differs": differs, "ratio": None, "low": None, "high": None}
    sides = [([score.value for score in gains], [score.cluster for score in gains]) for gains in (image, text)]
    estimate = statistics.gain_ratio(*sides[0], *sides[1])
    ratio, low, high = (value if math.isfinite(value) else None for value in estimate)
    return {**entry, "ratio": ratio, "low": low, "high": high}


def _undeclared(
    grouped: Mapping[str, Mapping[Place, list[Row]]], cell: str, after: str, before: str, items: Container[Item]
) -> list[dict[str, str]]:
    """What the protocols of two stages in a cell differ in, unless by design."""
    sides = [_of_items(grouped[stage].get(("cells", cell), []), items) for stage in (after, before)]
    found = protocol.compare(*sides)
    return [] if protocol.by_design(found, *sides) else [each._asdict() for each in found]


def _gains_of(after: Scores, before: Scores) -> list[Score]:
    """after − before for each shared item; of several benchmarks each counts alike. Text and image cells of the
    embedded world share their scenes, so its clusters go by their names alone."""
    shared = [item for item in after if item in before]
    sizes = Counter(bench for bench, _ in shared)
    scale = len(shared) / len(sizes) if sizes else 0.0
    return [
        Score(
            (after[item].value - before[item].value) * scale / sizes[item[0]],
            f"{item[0]}/{after[item].cluster}" if item[0] in TABLE else after[item].cluster,
        )
        for item in shared
    ]
