"""What is known of the benchmarks, as a table for the screen and as docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Sequence

from xreasoner.benchmarks.table import TABLE, Benchmark
from xreasoner.registry import BENCHMARKS

OWN = {
    "easy-vqa": ("9673", "image/general", "yes/no, text", "MIT", "the test split of PyPI's easy-vqa, with the package"),
    "gym:FAMILY": ("any", "text/general", "its own scorer", "Apache-2.0", "any family of reasoning-gym, as it comes"),
}


def count_of(entry: Benchmark) -> str:
    counts = entry.count if isinstance(entry.count, tuple) else (entry.count,)
    return " or ".join("any" if count is None else str(count) for count in counts)


def listing() -> list[tuple[str, str, str, str, str, str]]:
    """(name, items, modality/domain, answers, licence, gate) of every benchmark."""
    rows = [
        (e.name, count_of(e), f"{e.modality}/{e.domain}", e.answers, e.licence, "gated" if e.gate else "")
        for e in TABLE.values()
    ]
    rows += [(name, *known[:4], "") for name, known in OWN.items()]
    rest = [name for name in BENCHMARKS if name not in OWN]
    return rows + [(name, "any", "made here", "choice, number, text", "Apache-2.0", "") for name in rest]


def plain(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> str:
    """Columns as wide as their widest cell."""
    widths = [max(len(row[k]) for row in [heads, *rows]) for k in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [heads, *rows]
    )


def shown() -> str:
    """What `xreasoner benches` prints."""
    gates = [f"{entry.name}: {entry.gate}" for entry in TABLE.values() if entry.gate]
    table = plain(listing(), ("name", "items", "cell", "answers", "licence", ""))
    return "\n".join([table, "", "gated or withheld:", *gates])


def page() -> str:
    """docs/benchmarks.md."""
    lines = [
        _HEAD,
        "| name | data set, revision | config, split | items | cell | answers; gold | prompt | licence | notes |",
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for e in TABLE.values():
        where = ", ".join(f"{k} = {' or '.join(map(str, v))}" for k, v in e.where.items())
        split = ", ".join(part for part in (e.config, e.split, where) if part)
        notes = "; ".join(part for part in (f"**gated**: {e.gate}" if e.gate else "", e.note) if part)
        source = f"`{e.hub}` {e.revision[:8]}" if e.hub else "a local copy"
        cells = (f"`{e.name}`", source, split, count_of(e), f"{e.modality}/{e.domain}", f"{e.answers}; {e.gold}")
        lines.append(f"| {' | '.join(cells)} | `{e.prompt}` | {e.licence} | {notes} |")
    lines += [
        "",
        "Without a hub:",
        "",
        "| name | items | cell | answers | licence | what it is |",
        "|---|---|---|---|---|---|",
    ]
    lines += [f"| `{name}` | {' | '.join(known)} |" for name, known in OWN.items()]
    own = ", ".join(f"`{name}`" for name in BENCHMARKS if name not in OWN)
    return "\n".join([*lines, "", f"Made by the embedded world: {own}.", "", _LAYOUT])


_HEAD = """# The benchmarks

Written by `make docs` from `src/xreasoner/benchmarks/table.py`; `xreasoner benches` prints the short form.

    xreasoner eval MODEL --bench gsm8k,mmmu-pro-10,medqa --data DIR

Number of items, columns, and where known the numbers of golds and categories are asserted whenever a benchmark is
opened, on the whole of it, whatever `--limit` says. A revision of eight digits is a commit that is pinned.
"""

_LAYOUT = """## Files on a machine with no network

`--data DIR` takes the place of the hub. A data set lies in `DIR/OWNER/NAME` (or `DIR/NAME`) as in its repository on
the hub, which is what `hf download OWNER/NAME --repo-type dataset --local-dir DIR/OWNER/NAME` leaves. Archives of
pictures may stay packed: names of pictures in rows are looked for below that folder and in the ZIP files that lie in
it. A single file `DIR/BENCHMARK.parquet` (or `.jsonl`, `.json`, `.csv`, `.tsv`) with the data set's own columns
serves too; a picture is then a file's name below `DIR`, or base64.

`nejm` is a local copy alone: `DIR/nejm/nejm.jsonl` with `question`, `options` (a list), `answer` (a label or an
option's text) and `image` (a file's name below `DIR/nejm`), and if you have them `id` and `specialty`.

## Which items, which order, which pictures

`--limit N` takes the N items whose hash of seed and id is smallest, in the data set's order, so that more items hold
the fewer. Options are shown in the data set's order but for `gpqa-diamond`, whose right answer comes first in its
file: there the order is that of a hash of the item's id and the option. A picture stands where the text first marks
it (`<image 1>`), later marks become words, pictures that no mark names are left out where others are named, and all
come first where nothing is marked. Options that the question or the picture shows already are not printed again.

## The store

Every sample is a line of `OUT/eval/MODEL/results.jsonl`, written when it is finished and never changed. Its key is a
hash of the model's weights and template, benchmark, item, prompt (the whole text), pictures (their pixels, and what
they are resized to), sampling settings and the sample's number; the seed of a sample follows from `--seed`, the item
and its number. So a run that was killed goes on, more `--samples` or a higher `--limit` run what is missing, and
`xreasoner grade` judges the file anew without a model. `protocol.json` beside it says how each number came about.

`--samples K` reports the average of K samples (avg@K), the majority (a share where answers are tied; replies with no
answer do not vote), and pass@k without bias (Chen et al. 2021).
"""
