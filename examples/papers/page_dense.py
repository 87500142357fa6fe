"""The part of the page about FA Pool."""

from __future__ import annotations

from collections.abc import Sequence

from papers.cases import BATCHES, CASES, LENGTHS
from papers.look import (
    FULL,
    Record,
    Results,
    change,
    crossing,
    full,
    gain,
    lasts,
    lengths,
    seconds,
    table,
    times,
    tokens,
)
from plancc.simulator.table import share

POOLS = ("pool", "pool2", "heads", "heads2")
PLAIN = ("replicas", "kvp")
SHOWN = (4096, 16384, 32768)
FAR = 131072
LONG = 16384


def section(results: Results) -> str:
    """All of it."""
    parts = [decode, rows, crossings, growth, prefill, others]
    return "\n\n".join(part(results) for part in parts)


def decode(results: Results) -> str:
    """TPOT by batch and length, and what it says."""
    head = ["batch", "length", "TP 8 x PP 2, one micro-batch", "the best of 1 to 4"]
    head += [CASES[name].label for name in (*POOLS, "shared", *PLAIN)]
    lines = []
    for batch in BATCHES:
        for n in (*SHOWN, *((FAR,) if batch < 64 else ())):
            base = results.best("base", "decode", batch, n)
            count = f" ({base['microbatches']})" if seconds(base) else ""
            one = results.one("base", "decode", batch, n)
            line = [str(batch), f"{n:,}", lasts(one), lasts(base) + count]
            for name in (*POOLS, "shared", *PLAIN):
                line.append(lasts(results.best(name, "decode", batch, n)))
            lines.append(line)
    devices = [
        str(results.best(name, "decode", 64, LONG)["devices"])
        for name in ("base", "base", *POOLS, "shared", *PLAIN)
    ]
    lines.insert(0, ["", "devices", *devices])
    return f"""### Decode

Predicted TPOT, each step with the whole batch; in brackets how many micro-batches were best. The pool has
32 devices at every length of this table, also at those at which the paper would not use it yet.

{table(head, lines, 0)}

![TPOT by length](fa_decode.svg)

{decode_words(results)}"""


def decode_words(results: Results) -> str:
    """The table in sentences."""

    def ratio(batch: int, against: Record) -> str:
        return times(gain(against, results.fastest(POOLS, "decode", batch, LONG)))

    said = []
    for batch in BATCHES:
        one = results.one("base", "decode", batch, LONG)
        best = results.best("base", "decode", batch, LONG)
        plain = results.fastest(PLAIN, "decode", batch, LONG)
        said.append(
            f"batch {batch}: {ratio(batch, one)} against one micro-batch, {ratio(batch, best)} against the "
            f"best number of them, {ratio(batch, plain)} against {CASES[plain['case']].label} on the same "
            "40 devices"
        )
    heads, blocks = (results.best(name, "decode", 1024, LONG) for name in ("heads", "pool"))
    lists = "\n".join(f"- {text};" for text in said)
    return f"""The best of the four pools at {LONG:,} tokens:

{lists[:-1]}.

A split by heads needs no merge of partial results, and sends each query to one pool device instead of all
32 (at batch 1024 {lasts(heads)} against {lasts(blocks)}). Two micro-batches in turn pay once a step is
long: with few sequences the base reads all its weights twice and launches every kernel twice."""


def rows(results: Results) -> str:
    """Everything about the rows at 16K."""
    found = []
    for batch in (64, 1024):
        lines = [
            full(results.one("base", "decode", batch, LONG)),
            full(results.best("base", "decode", batch, LONG)),
            *(
                full(results.best(name, "decode", batch, LONG))
                for name in (*POOLS, "shared", *PLAIN)
            ),
        ]
        found.append(f"Batch {batch}, {LONG:,} tokens, decode:\n\n{table(FULL, lines)}")
    lines = [
        full(results.best(name, "decode", 1024, 32768), CASES[name].label)
        for name in ("base", "pool2", "heads2", *PLAIN)
    ]
    found.append(f"Batch 1024, 32,768 tokens, decode:\n\n{table(FULL, lines)}")
    return "\n\n".join(found)


def overtakes(
    results: Results, mine: Sequence[str], phase: str, batch: int, theirs: str, how: str
) -> int | None:
    """The length from which on the best of some plans is faster than another one."""
    points = []
    for n in lengths(results, theirs, phase, batch):
        row = (results.one if how == "one" else results.best)(theirs, phase, batch, n)
        points.append((n, gain(row, results.fastest(mine, phase, batch, n))))
    return crossing(points)


def from_on(n: int | None, batch: int) -> str:
    """Where the pool begins to pay, in words."""
    if n is None:
        return "never"
    return "always" if n == LENGTHS[0] else f"{n:,} ({tokens(n * batch)})"


def crossings(results: Results) -> str:
    """Where the pool begins to pay."""
    rivals = (
        ("base", "one", "TP 8 x PP 2, one micro-batch"), ("base", "best", "TP 8 x PP 2, the best"),
        ("replicas", "best", "5 x TP 8"), ("kvp", "best", "TP 8 x KV 5"),
    )  # fmt: skip
    lines = []
    for phase in ("decode", "prefill"):
        for batch in BATCHES if phase == "decode" else (1, 16, 64):
            line = [phase, str(batch)]
            for name, how, _ in rivals:
                if not results.all(name, phase, batch, LENGTHS[0]):
                    line.append("–")
                    continue
                mine = POOLS if phase == "decode" else ("pool4", "heads")
                n = overtakes(results, mine, phase, batch, name, how)
                line.append(from_on(n, batch))
            lines.append(line)
    head = ["phase", "batch", *(label for _, _, label in rivals)]
    return f"""### When the pool pays

The length from which on the best of the four pools is faster (between two lengths that were simulated, by
a line in log space), and in brackets the tokens in flight there, batch times length. "Always": from
{LENGTHS[0]:,} on. "Never": not up to the longest length at which both fit (at most {LENGTHS[-1]:,};
{FAR:,} for batch 1, and for decode at batch 16).

{table(head, lines, 2)}

![Gain by tokens in flight](fa_crossover.svg)

{crossing_words(results)}"""


def crossing_words(results: Results) -> str:
    """What pays and when."""
    found = {
        how: [n * batch for batch in (1, 16, 64)
              if (n := overtakes(results, POOLS, "decode", batch, "base", how)) is not None]
        for how in ("one", "best")
    }  # fmt: skip
    one, best = (
        f"{tokens(min(found[how]))} to {tokens(max(found[how]))}" for how in ("one", "best")
    )
    few = overtakes(results, POOLS, "decode", 1, "replicas", "best")
    far = [results.best(name, "decode", 1, FAR) for name in ("replicas", "heads")]
    most = {
        (gain(results.fastest(PLAIN, "decode", batch, n), results.fastest(POOLS, "decode", batch, n)) or 0.0,
         batch, n)
        for batch in BATCHES[1:] for n in lengths(results, "pool", "decode", batch)
    }  # fmt: skip
    gained, batch, n = max(most)
    lost = results.fastest(POOLS, "decode", 1024, LONG)
    plain = results.fastest(PLAIN, "decode", 1024, LONG)
    return f"""Tokens in flight decide, not length: up to batch 64 the pool overtakes the baseline with one
micro-batch at {one} tokens in flight, and the best baseline at {best}. Its own ground is one long sequence:
five replicas cannot share it, and from {from_on(few, 1)} tokens on the pool is faster than they are
({times(gain(*far))} at {FAR:,}). With more sequences than replicas it is at most {times(gained)} as
fast as the best plain plan on the same 40 devices (batch {batch}, {n:,} tokens), and
{times(gain(plain, lost))} at batch 1024 and {LONG:,} tokens. The plain plans also hold 32,768 tokens of
1024 sequences, which neither the baseline nor the pool within its budgets does."""


def growth(results: Results) -> str:
    """Scaling with p = n / 512."""
    lines = []
    for batch in (64, 1024):
        first = None
        for n, case, p in ((4096, "pool_8", 8), (8192, "pool_16", 16), (16384, "pool2", 32)):
            row = results.best(case, "decode", batch, n)
            first = first or row
            part = gain(first, row)
            lines.append([
                str(batch), f"{n:,}", str(p), str(row["devices"]), lasts(row),
                "–" if part is None else share(part),
            ])  # fmt: skip
    fixed = []
    for batch in (64, 1024):
        rows = [
            results.best(case, "decode", batch, LONG) for case in ("pool_8", "pool_16", "pool2")
        ]
        fixed.append([str(batch), *(lasts(row) for row in rows)])
    return f"""### Growing with the sequence

The paper's pool grows with the sequence, p = n / 512. The last column is the TPOT at 4,096 tokens over
this one: 100 % would be linear.

{table(["batch", "length", "pool devices", "devices", "TPOT", "kept"], lines, 0)}

At {LONG:,} tokens with a pool of 8, 16 and 32:

{table(["batch", "8 + 8", "8 + 16", "8 + 32"], fixed, 0)}"""


def prefill(results: Results) -> str:
    """TTFT."""
    names = ("pool4", "heads", "replicas")
    head = ["batch", "length", "TP 8 x PP 2, one micro-batch", "the best of 1 to 16"]
    head += [CASES[name].label for name in names]
    lines = []
    for batch in BATCHES:
        for n in (512, 4096, 16384, *((131072,) if batch == 1 else (32768,))):
            base = results.best("base", "prefill", batch, n)
            count = f" ({base['microbatches']})" if seconds(base) else ""
            one = results.one("base", "prefill", batch, n)
            found = [lasts(results.best(name, "prefill", batch, n)) for name in names]
            lines.append([str(batch), f"{n:,}", lasts(one), lasts(base) + count, *found])
    base, heads = (results.best(name, "prefill", 1, LONG) for name in ("base", "heads"))
    far = [results.best(name, "prefill", 1, 131072) for name in ("base", "heads", "replicas")]
    return f"""### Prefill

Predicted TTFT. A batch of one prompt has one micro-batch: prompts are not cut into chunks.

{table(head, lines, 0)}

![TTFT by length](fa_prefill.svg)

The feed-forward and the projections stay on eight devices, and attention is the smaller part of the work
up to long prompts: at {LONG:,} tokens the pool by heads has {times(gain(base, heads))} of the baseline's
speed, at 131,072 {times(gain(far[0], far[1]))} (and {times(gain(far[2], far[1]))} of that of one TP 8
replica on its eight devices). In blocks every query goes to all 32 pool devices and every partial result
comes back through a merge; what `place ... split kv_seq` says is right for decode and wrong for prefill."""


def others(results: Results) -> str:
    """One NIC, no tree, grouped heads, CUDA graphs."""
    lines = []
    groups = {
        "as above": ("base", "pool", "pool2", "heads2", "replicas"),
        "one NIC a node": ("base_nic", "pool_nic", "pool2_nic", "heads2_nic"),
        "merge without a tree": ("pool_flat",),
        "8 KV heads": ("base_gqa", "pool2_gqa", "heads2_gqa", "replicas_gqa"),
        "CUDA graphs": ("base_graph", "pool2_graph", "heads2_graph", "replicas_graph"),
    }
    for what, names in groups.items():
        for name in names:
            found = [results.best(name, "decode", batch, LONG) for batch in (64, 1024)]
            lines.append([
                what, CASES[name].label, str(found[0]["devices"]), lasts(found[0]),
                share(found[0]["comm_share"]), lasts(found[1]), share(found[1]["comm_share"]),
            ])  # fmt: skip
    head = [
        "what",
        "plan",
        "devices",
        "TPOT, batch 64",
        "communication",
        "TPOT, batch 1024",
        "communication",
    ]
    one, nic = (results.best(name, "decode", 1024, LONG) for name in ("pool", "pool_nic"))
    ratio = gain(nic, one) or 0.0
    grouped = {
        batch: gain(results.best("base_gqa", "decode", batch, LONG),
                    results.fastest(("pool2_gqa", "heads2_gqa"), "decode", batch, LONG))
        for batch in (64, 1024)
    }  # fmt: skip
    return f"""### What it stands on

Decode at {LONG:,} tokens under other assumptions. "CUDA graphs" is the preset `graph` of the cluster
file.

{table(head, lines, 2)}

With one NIC a node in place of eight the pool in blocks takes {change(ratio)} of time at batch 1024. With
eight KV heads there is a quarter of the cache to read: the best pool's gain over the best baseline is
{times(grouped[64])} at batch 64 and {times(grouped[1024])} at 1024."""
