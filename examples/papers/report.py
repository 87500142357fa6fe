"""Simulate the plans of the papers and write the page: results.json, README.md, the pictures.

python examples/papers/report.py           simulate every point (minutes), then write all
python examples/papers/report.py --draw    write page and pictures of the stored results
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from textwrap import fill

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from papers import claims, page_dense, page_moe  # noqa: E402
from papers.cases import CASES, points  # noqa: E402
from papers.grid import Record, measure, stored_text  # noqa: E402
from papers.look import Results, table  # noqa: E402
from papers.plots import PICTURES  # noqa: E402

STORED, PAGE = HERE / "results.json", HERE / "README.md"
WIDTH = 118
BEGIN, END = "<!-- predicted -->", "<!-- end of predicted -->"


def page_text(found: Record, page: str) -> str:
    """README.md with what stands between its markers made of the stored results."""
    results = Results(found["facts"], found["rows"])
    body = "\n\n".join((
        ground(results),
        "## FA Pool",
        claims.section(results, claims.FA_POOL),
        page_dense.section(results),
        "## MA Separation",
        claims.section(results, claims.MA_SEPARATION),
        page_moe.section(results),
        commands(results),
    ))  # fmt: skip
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n\n{filled(body)}\n\n{END}{after}"


def filled(body: str) -> str:
    """The paragraphs of a page in lines of equal length; tables, lists, titles and commands as they are."""
    found = []
    for block in body.split("\n\n"):
        plain = not block.startswith(("|", "#", "-", "!", "```"))
        found.append(fill(block, WIDTH, break_on_hyphens=False) if plain else block)
    return "\n\n".join(found)


def ground(results: Results) -> str:
    """What all figures stand on."""
    facts = results.facts
    kept = {name: count / 1e9 for name, count in facts["parameters"].items()}
    said = "\n".join(f"- {text}" for text in facts["assumptions"])
    meant = "\n".join(f"- {name}: {text}." for name, text in facts["utilisation"].items())
    return f"""## What the figures stand on

Everything below is predicted, nothing was measured: on `{facts["cluster"]}` (its file has every constant
with its source), in bf16, for {len(results.rows)} points of {len({r["case"] for r in results.rows})}
plans. The models have {kept["dense"]:.2f} B and {kept["moe"]:.2f} B parameters.

{said}

Utilisation has two meanings here, both means over all devices of a plan:

{meant}"""


def commands(results: Results) -> str:
    """Which plan files the rows are of."""
    used = dict.fromkeys(row["case"] for row in results.rows)
    lines = [[CASES[name].label, f"`{CASES[name].command}`"] for name in used if "@" not in name]
    lines += [
        [CASES[name].label, f"`{CASES[name].command}`"] for name in used if name.endswith("@16384")
    ]
    rows = table(["row", "plan file and parameters"], lines, 2)
    return f"""## The plans

Any row again, with those of another length or batch beside it:

```
plancc simulate examples/papers/plans/fa_pool.plan \\
    --set p=32 --set long=255 --set depth=1 --set batches=2 \\
    --model examples/papers/models.py:dense --dtype bf16 \\
    --cluster examples/clusters/{results.facts["cluster"]}.json --phase decode --batch 64 --seq-len 8192,16384
```

{rows}"""


def write(path: Path, text: str) -> None:
    """A whole file or none."""
    aside = path.with_name(path.name + ".new")
    aside.write_text(text, "utf-8")
    os.replace(aside, path)


def main() -> None:
    """Measure unless told only to draw; write all files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--draw", action="store_true", help="write the stored results again")
    args = parser.parse_args()
    if not args.draw:
        found = measure(points(), lambda text: print(text, flush=True))
        write(STORED, stored_text(found))
    found = json.loads(STORED.read_text("utf-8"))
    results = Results(found["facts"], found["rows"])
    for name, draw in PICTURES.items():
        write(HERE / name, draw(results))
    write(PAGE, page_text(found, PAGE.read_text("utf-8")))


if __name__ == "__main__":
    main()
