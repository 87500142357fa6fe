"""The matrix: ratios, layouts, shared devices, state sharding and pipelines, with routed experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from moe_plans import Plan, overlap

TRAINED = "model m { mode = train }"
SPLIT = "split batch over dp (block = balanced)"
MA = Plan(
    {"rep": 2, "hp": 2, "sp": 3}, {"ep": 4}, every="split batch over rep",
    attention="split heads over hp; split seq over sp (block = ceil(seq_len / sp))",
)  # fmt: skip
STAGES = (
    "place layers.* { split layers over pp }\nplace embed_tokens on attn[pp = 0]\n"
    "place norm, lm_head on attn[pp = -1]"
)
OTHER_EXPERTS = (
    "mesh moe2[ep = 3] on local[4:7]\n"
    "place layers.1.moe.experts on moe2 { split experts over ep (block = balanced); route = top(2) }"
)
OTHER_ATTENTION = (
    "mesh attn2[dp = 3] on local[4:7]\nplace layers.1, norm, lm_head on attn2 { " + SPLIT + " }"
)


def ratio(attn: int, moe: int, **options: str | int) -> Plan:
    """`attn` ranks with sequences of their own, `moe` ranks with experts."""
    return Plan({"dp": attn}, {"ep": moe}, every=SPLIT, **options)  # type: ignore[arg-type]


def state(*kinds: str) -> str:
    """Rules of the attention mesh that shard the state of its parameters."""
    return f"{SPLIT}; split {', '.join(kinds)} over dp"


def stages(schedule: str = "", moe: Mapping[str, int] | None = None, **options: str) -> Plan:
    """Two stages of attention, two ranks each, and experts of their own."""
    tail = f"pipeline over attn.pp {{ {schedule} }}" if schedule else ""
    mesh = {"ep": 2} if moe is None else moe
    return Plan(
        {"pp": 2, "dp": 2}, mesh, head=TRAINED, every=SPLIT, before=STAGES, tail=tail, **options
    )


RATIOS = {
    "ma": MA, "ma in turns": replace(MA, tail=overlap()),
    **{f"{a}+{f}": ratio(a, f) for a, f in
       ((3, 1), (6, 2), (9, 3), (14, 2), (10, 6), (3, 2), (2, 4), (12, 4), (1, 4), (1, 1))},
    **{f"{a}+{f} in turns": ratio(a, f, tail=overlap(n)) for a, f, n in
       ((3, 1, 2), (6, 2, 2), (3, 2, 3), (2, 4, 4))},
    "uneven experts": ratio(5, 3, model="moe5"),
    "more ranks than experts": ratio(2, 7, model="moe5"),
    "32 heads over 12": Plan({"hp": 12}, {"ep": 4}, "moe32",
                             attention="split heads over hp (block = balanced)"),
    "6 heads over 12": Plan({"hp": 12}, {"ep": 4}, "moe6",
                            attention="split heads over hp (block = balanced)"),
    "6 heads over 4": Plan({"hp": 4}, {"ep": 3}, "moe6",
                           attention="split heads over hp (block = balanced)"),
}  # fmt: skip
ONE_MESH = Plan({"dp": 4}, {}, every=SPLIT, experts="split experts over dp (block = balanced)")
LAYOUTS = {
    "one mesh": ONE_MESH,
    "one mesh of 16": replace(ONE_MESH, attn={"dp": 16}),
    "one mesh, experts over two axes": Plan(
        {"dp": 2, "tp": 2}, {}, every=SPLIT, attention="split heads over tp",
        experts="split experts over dp, tp (block = balanced)"),
    "one mesh, experts x ffn": Plan(
        {"dp": 2, "tp": 2}, {}, every=SPLIT, attention="split heads over tp",
        experts="split experts over dp (block = balanced); split ffn over tp"),
    "one mesh, experts over tp": Plan(
        {"dp": 2, "tp": 2}, {}, every=SPLIT, attention="split heads over tp",
        experts="split experts over tp (block = balanced)"),
    "same devices": ratio(4, 4, first=0),
    "same devices in turns": ratio(4, 4, first=0, tail=overlap()),
    "same devices, attention over tp": Plan(
        {"dp": 2, "tp": 2}, {"ep": 4}, every=SPLIT, attention="split heads over tp", first=0),
    "some devices shared": ratio(4, 4, first=2),
    "experts x ffn": Plan({"dp": 3}, {"ep": 2, "tp": 2}, every=SPLIT,
                          experts="split experts over ep; split ffn over tp"),
    "ffn alone": Plan({"dp": 3}, {"tp": 2}, every=SPLIT, experts="split ffn over tp"),
    "experts over two axes": Plan({"dp": 3}, {"a": 2, "b": 2}, every=SPLIT,
                                  experts="split experts over a, b"),
    "copies x experts": Plan({"dp": 3}, {"rep": 2, "ep": 2}, every=SPLIT, head=TRAINED,
                             experts="split experts over ep; replicate params over rep"),
    "copies x experts x ffn": Plan({"dp": 3}, {"rep": 2, "ep": 2, "tp": 2}, every=SPLIT,
                                   experts="split experts over ep; split ffn over tp"),
    "copies x experts x ffn in turns": Plan(
        {"dp": 3}, {"rep": 2, "ep": 2, "tp": 2}, every=SPLIT, tail=overlap(),
        experts="split experts over ep; split ffn over tp"),
    "tokens on every rank": Plan({"dp": 3, "tp": 2}, {"ep": 4}, every=SPLIT,
                                 attention="split heads over tp", tail=overlap()),
    "positions and sequences": Plan(
        {"dp": 2, "sp": 3}, {"ep": 2}, tail=overlap(4),
        every=SPLIT + "; split seq over sp (block = balanced)"),
    "positions": Plan({"sp": 3}, {"ep": 2}, every="split seq over sp (block = balanced)"),
    "split vocabulary": Plan(
        {"dp": 2, "tp": 3}, {"ep": 4}, every=SPLIT,
        attention="split heads over tp (block = balanced)",
        tail="place embed_tokens, lm_head { split vocab over tp (block = balanced) }"),
    "no route": ratio(3, 2, route=""),
    "two groups of experts": ratio(2, 2, head=TRAINED, tail=OTHER_EXPERTS),
    "two groups of experts in turns": ratio(
        2, 2, head=TRAINED,
        tail=f"{OTHER_EXPERTS}\n{overlap()}\ncomm attn <-> moe2 {{ overlap = async(chunks = 2) }}"),
    "gradients in 8 bits": ratio(
        3, 2, head=TRAINED,
        tail="comm attn <-> moe { grad_dtype = int8(block = 128); overlap = async(chunks = 2) }"),
}  # fmt: skip
STATE = {
    **{name: Plan({"dp": 3}, {"ep": 2}, head=TRAINED, every=state(*kinds)) for name, kinds in
       (("zero 1", ("optim",)), ("zero 2", ("grads", "optim")),
        ("zero 3", ("params", "grads", "optim")))},
    "zero 3 over copies": Plan(
        {"dp": 3}, {"rep": 2, "ep": 2}, head=TRAINED, every=SPLIT,
        experts="split experts over ep; split params, grads, optim over rep"),
    "zero 1 over copies": Plan(
        {"dp": 3}, {"rep": 2, "ep": 2}, head=TRAINED, every=SPLIT,
        experts="split experts over ep; split optim over rep"),
    "recompute": ratio(3, 2, head=TRAINED, tail="place layers.* { recompute = true }"),
    "recompute on one mesh": replace(
        ONE_MESH, head=TRAINED, tail="place layers.* { recompute = true }"),
    "recompute the experts": ratio(
        3, 2, head=TRAINED, experts="split experts over ep; recompute = true"),
    "recompute, zero 3, in turns": Plan(
        {"dp": 3}, {"ep": 2}, head=TRAINED, every=state("params", "grads", "optim"),
        tail="place layers.* { recompute = true }\n" + overlap()),
    "two stages": stages(),
    "two stages in turns": replace(stages(), tail=overlap()),
    "GPipe": stages('schedule = "GPipe"; microbatches = 2'),
    "1F1B": stages('schedule = "1F1B"; microbatches = 4'),
    "1F1B, stages of experts": stages(
        'schedule = "1F1B"; microbatches = 4', {"pp": 2, "ep": 2},
        experts="split layers over pp; split experts over ep"),
    "1F1B on one mesh": stages(
        'schedule = "1F1B"; microbatches = 4', {}, experts="split experts over dp"),
    "chain": ratio(2, 2, head=TRAINED, before=OTHER_ATTENTION),
    "chain, GPipe": ratio(
        2, 2, head=TRAINED, before=OTHER_ATTENTION,
        tail='pipeline attn -> attn2 { schedule = "GPipe"; microbatches = 2 }'),
}  # fmt: skip
