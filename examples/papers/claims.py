"""Each claim of the papers beside what is predicted, and the assumption on which it stands or falls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from papers import page_moe as moe
from papers.cases import TRAINED, WIDE
from papers.look import Results, change, gain, seconds, table, times
from papers.page_dense import LONG, PLAIN, POOLS, from_on, overtakes
from plancc.simulator.table import number, share

REACHED, AGAINST_ONE, MISSED, UNSAID = (
    "reached", "only against one micro-batch", "not reached", "nothing to predict"
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Claim:
    """A claim: what the paper says, and a function that gives what is predicted and the verdict."""

    name: str
    says: str
    stands: str
    predicted: Callable[[Results], tuple[str, str]]


def verdict(claimed: float, one: float, best: float) -> str:
    """Whether a gain is reached against the best baseline, against one micro-batch, or not."""
    return REACHED if best >= claimed else AGAINST_ONE if one >= claimed else MISSED


def gains(results: Results, batch: int) -> tuple[float, float, float]:
    """The best pool at 16K against one micro-batch, the best, and the best plain plan on 40 devices."""
    mine = results.fastest(POOLS, "decode", batch, LONG)
    rivals = (
        results.one("base", "decode", batch, LONG), results.best("base", "decode", batch, LONG),
        results.fastest(PLAIN, "decode", batch, LONG),
    )  # fmt: skip
    one, best, plain = (gain(rival, mine) or 0.0 for rival in rivals)
    return one, best, plain


def tpot(results: Results) -> tuple[str, str]:
    """3.2x."""
    found = {batch: gains(results, batch) for batch in (1, 16, 64, 1024)}
    text = "; ".join(
        f"batch {batch}: {times(one)} / {times(best)} / {times(plain)}"
        for batch, (one, best, plain) in found.items()
    )
    most = [max(column) for column in zip(*found.values(), strict=True)]
    return (
        f"against one micro-batch / the best / the best plain plan on 40 devices: {text}",
        verdict(3.2, most[0], most[1]),
    )


def tps(results: Results) -> tuple[str, str]:
    """2.8x, and by device."""
    mine = results.fastest(POOLS, "decode", 1024, LONG)
    base = results.best("base", "decode", 1024, LONG)
    one, best, _ = gains(results, 1024)
    text = (
        f"batch 1024: {times(one)} / {times(best)}; tokens/s a device: {number(mine['tps_per_device'])} "
        f"against {number(base['tps_per_device'])} of the best baseline, "
        f"{times(mine['tps_per_device'] / base['tps_per_device'])}"
    )
    return text, verdict(2.8, one, best)


def linear(results: Results) -> tuple[str, str]:
    """Near-linear scaling up to 16K."""
    kept = {}
    for batch in (64, 1024):
        rows = [results.best(case, "decode", batch, n)
                for case, n in (("pool_8", 4096), ("pool_16", 8192), ("pool2", 16384))]  # fmt: skip
        kept[batch] = gain(rows[0], rows[2]) or 0.0
    prefill = [results.fastest(("pool4", "heads"), "prefill", 1, n) for n in (4096, 16384)]
    grown = (seconds(prefill[1]) or 0.0) / (seconds(prefill[0]) or 1.0)
    text = (
        f"decode with p = n / 512: TPOT at 4K over TPOT at 16K is {share(kept[64])} at batch 64, "
        f"{share(kept[1024])} at 1024; prefill takes {times(grown)} the time for 4 times the tokens, on 32 "
        "pool devices at both"
    )
    return text, "decode only" if min(kept.values()) >= 0.9 and grown > 2 else MISSED


def pool_use(results: Results) -> tuple[str, str]:
    """85 to 92 % against 45 to 60 %."""
    rows = [results.best(name, "decode", 1024, LONG) for name in ("pool", "pool2", "heads2")]
    one, best = (
        results.one("base", "decode", 1024, LONG),
        results.best("base", "decode", 1024, LONG),
    )
    parts = []
    for row, name in zip(rows, ("in blocks", "ping-pong", "by heads, ping-pong"), strict=True):
        busy = {mesh.split("@")[0]: value for mesh, value in row["busy_by_mesh"].items()}
        whole = share(row["utilisation"]["busy"])
        two = f"{share(busy['fa'])} in the pool, {share(busy['base'])} in the base"
        parts.append(f"{name} {two}, {whole} of all 40")
    text = (
        f"busy at batch 1024: {'; '.join(parts)}; baseline {share(one['utilisation']['busy'])} with one "
        f"micro-batch, {share(best['utilisation']['busy'])} with {best['microbatches']}"
    )
    pool_best = max(
        value for row in rows for mesh, value in row["busy_by_mesh"].items() if mesh != "base"
    )
    reached = pool_best >= 0.85 and one["utilisation"]["busy"] <= 0.6
    return text, AGAINST_ONE if reached else MISSED


def communication(results: Results) -> tuple[str, str]:
    """Less than 15 % of compute."""
    found = {}
    for name, label in (
        ("pool", "blocks"), ("pool2", "ping-pong"), ("heads2", "by heads, ping-pong"),
        ("pool_flat", "without the tree"), ("pool_nic", "one NIC"),
    ):  # fmt: skip
        found[label] = [
            row["comm_share"] / row["utilisation"]["busy"]
            for row in (results.best(name, "decode", batch, LONG) for batch in (64, 1024))
        ]
    text = "; ".join(f"{label} {share(a)} / {share(b)}" for label, (a, b) in found.items())
    whole = all(value < 0.15 for values in found.values() for value in values)
    part = any(value < 0.15 for values in found.values() for value in values)
    return (
        f"communication over computation, mean over all 40, batch 64 / 1024: {text}",
        REACHED if whole else "in part" if part else MISSED,
    )


def threshold(results: Results) -> tuple[str, str]:
    """4096 tokens."""
    parts = []
    for batch in (1, 16, 64, 1024):
        found = [overtakes(results, POOLS, "decode", batch, "base", how) for how in ("one", "best")]
        parts.append(f"batch {batch}: {' / '.join(from_on(n, batch).split(' ')[0] for n in found)}")
    return (
        f"the length from which the best pool is faster than one micro-batch / the best: {'; '.join(parts)}",
        "no single length",
    )


def separated(results: Results) -> tuple[float, float, float]:
    """The separation at 1024 against one micro-batch, the best, and data and expert parallelism."""
    mine = moe.at(results, "ma2")
    rivals = (moe.base_one(results), moe.at(results, "moe_base"), moe.at(results, "dp_ep"))
    one, best, plain = (gain(rival, mine) or 0.0 for rival in rivals)
    return one, best, plain


def ma_tpot(results: Results) -> tuple[str, str]:
    """-34.2 %."""
    one, best, plain = separated(results)
    small = moe.at(results, "ma2", "decode", 256)
    lost = gain(small, moe.at(results, "moe_base", "decode", 256)) or 0.0
    text = (
        f"decode, batch 1024: {change(1 / one)} against one micro-batch, {change(1 / best)} against the "
        f"best, {change(1 / plain)} against DP 16 + EP 16; batch 256: {change(lost)} against the best"
    )
    return text, verdict(1 / 0.658, one, best)


def ma_tps(results: Results) -> tuple[str, str]:
    """+52.8 %."""
    one, best, plain = separated(results)
    found = {}
    for phase, batch, base, mine in (
        ("prefill", 256, "moe_base", ("ma2", "ma2_8_8", "ma2_4_12")),
        ("train", TRAINED, "train_base", ("train_ma", "train_ma_8_8")),
    ):  # fmt: skip
        for ffn in (1536, WIDE):
            rows = [moe.at(results, name, phase, batch, ffn) for name in mine]
            against = [moe.at(results, name, phase, batch, ffn) for name in (base, "dp_ep")]
            best_row = max(rows, key=lambda row: row["tps"])
            gained = [change(gain(row, best_row) or 0.0) for row in against]
            found[f"{phase}, FFN {ffn:,}, best ratio"] = " / ".join(gained)
    text = (
        f"decode, batch 1024 (it is the same measurement: 1 / 0.658 = 1.52): {change(one)} / "
        f"{change(best)} / {change(plain)}; against the best baseline / DP 16 + EP 16 in "
        + "; ".join(f"{name}: {value}" for name, value in found.items())
    )
    return text, verdict(1.528, one, best)


def ma_use(results: Results) -> tuple[str, str]:
    """89.7 % against 71.2 %."""
    mine, one, best = moe.at(results, "ma2"), moe.base_one(results), moe.at(results, "moe_base")
    plain = moe.at(results, "dp_ep")
    busy = {mesh: share(value) for mesh, value in mine["busy_by_mesh"].items()}
    whole = [row["utilisation"]["busy"] for row in (mine, one, best, plain)]
    text = (
        f"busy at batch 1024: {share(whole[0])} (attention {busy['attn']}, experts {busy['moe']}) against "
        f"{share(whole[1])} with one micro-batch, {share(whole[2])} with {best['microbatches']}, "
        f"{share(whole[3])} under DP 16 + EP 16; MFU {share(mine['utilisation']['mfu'])}"
    )
    return text, verdict(0.897 / 0.712, whole[0] / whole[1], whole[0] / whole[2])


def ma_scales(results: Results) -> tuple[str, str]:
    """87 % at 16."""
    kept = moe.efficiency(results)
    text = ", ".join(f"{share(kept[n])} at {n}" for n in (8, 16, 32))
    return f"against 4 devices at batch 1024: {text}", REACHED if kept[16] >= 0.87 else MISSED


def ma_even(results: Results) -> tuple[str, str]:
    """Break-even at 8."""
    parts, first = [], {}
    for devices, ma, one, best in moe.scale_rows(results):
        found = [gain(row, ma) or 0.0 for row in (one, best)]
        parts.append(f"{devices} devices {times(found[0])} / {times(found[1])}")
        for how, value in zip(("one", "best"), found, strict=True):
            if value > 1:
                first.setdefault(how, devices)
    said = f"against one micro-batch / the best: {'; '.join(parts)}"
    return said, REACHED if first.get("one", 99) <= 8 else MISSED


def ma_energy(results: Results) -> tuple[str, str]:
    """-33.9 %."""
    base, plain_row = moe.at(results, "moe_base"), moe.at(results, "dp_ep")
    rows = (moe.at(results, "ma2"), moe.base_one(results), base, plain_row)
    mine, one, best, plain = (row["energy_j_per_token"] for row in rows)
    text = (
        f"{mine:.3f} J a token against {one:.3f} with one micro-batch ({change(mine / one)}), "
        f"{best:.3f} with the best ({change(mine / best)}), "
        f"{plain:.3f} under DP 16 + EP 16 ({change(mine / plain)})"
    )
    return text, verdict(1 / 0.661, one / mine, best / mine)


def ma_memory(results: Results) -> tuple[str, str]:
    """123.7 GB."""
    count = results.facts["parameters"]["moe"]
    row = moe.at(results, "train_ma", "train", TRAINED)
    held = ", ".join(f"{mesh} {gb:.1f} GB" for mesh, gb in row["memory_gb"].items())
    text = (
        f"{count / 1e9:.2f} B parameters of 14 bytes (bf16 weights, float32 master and moments) are "
        f"{count * 14 / 1e9:.1f} GB, of the whole cluster; the fullest devices of a training step: {held}"
    )
    return text, MISSED


def ma_together(results: Results) -> tuple[str, str]:
    """Both groups finish together."""
    found = []
    for phase, batch in (("decode", 1024), ("prefill", 256)):
        for name, ratio in (("ma2", "12 : 4"), ("ma2_8_8", "8 : 8"), ("ma2_4_12", "4 : 12")):
            busy = moe.at(results, name, phase, batch)["busy_by_mesh"]
            found.append((phase, ratio, busy["attn"], busy["moe"]))
    text = "; ".join(f"{phase} {ratio}: {share(a)} / {share(m)}" for phase, ratio, a, m in found)
    even = [abs(a - m) < 0.1 for _, _, a, m in found]
    return f"attention / experts busy, FFN {WIDE:,}: {text}", (
        REACHED if all(even) else "in part" if any(even) else MISSED
    )


def ma_significance(results: Results) -> tuple[str, str]:
    """p < 0.001."""
    return (
        "a simulation gives one figure, the same each time; it says nothing about scatter",
        UNSAID,
    )


FA_POOL = (
    Claim("TPOT", "3.2x TPOT at 16K and more",
          "a baseline that runs one micro-batch, so that half of it waits; many sequences; decode", tpot),
    Claim("TPS", "2.8x tokens/s at 16K and more",
          "the same; and on counting seconds, not devices: 40 are compared with 16", tps),
    Claim("scaling", "near-linear up to 16K",
          "the pool growing with the sequence and a batch whose cache outweighs the hops", linear),
    Claim("utilisation", "85-92 % in the pool, 45-60 % in the baseline",
          "leaving the base out of the mean, and one micro-batch in the baseline", pool_use),
    Claim("communication", "less than 15 % of compute time",
          "batch x length in the millions, eight NICs a node, the reduction node by node", communication),
    Claim("threshold", "the pool from 4,096 tokens on",
          "the batch: what decides is tokens in flight", threshold),
)  # fmt: skip
MA_SEPARATION = (
    Claim("TPOT", "TPOT -34.2 %", "a baseline that runs one micro-batch; batch 1024; decode", ma_tpot),
    Claim("TPS", "tokens/s +52.8 %", "the same; in prefill and training the ratio must be another", ma_tps),
    Claim("utilisation", "89.7 % against 71.2 %",
          "utilisation as busy time, not as FLOPs; one micro-batch in the baseline", ma_use),
    Claim("scaling", "87 % scaling efficiency at 16 devices", "a fixed batch of 1024, decode", ma_scales),
    Claim("break-even", "break-even at 8 devices",
          "the baseline's second pipeline stage, which it gets at 16 devices", ma_even),
    Claim("energy", "energy -33.9 %",
          "devices that wait drawing as much as those that work: only then it follows TPOT", ma_energy),
    Claim("memory", "123.7 GB of memory per device",
          "nothing: a device has 80 GB; it is the training state of the whole cluster", ma_memory),
    Claim("co-execution", "both groups finish together",
          "the ratio being solved for each phase and model", ma_together),
    Claim("significance", "p < 0.001 over 10 runs", "runs on hardware", ma_significance),
)  # fmt: skip


def section(results: Results, claims: tuple[Claim, ...]) -> str:
    """The table of claims."""
    lines = []
    for claim in claims:
        text, how = claim.predicted(results)
        lines.append([claim.says, text, how, claim.stands])
    head = ["the paper's claim", "predicted here", "verdict", "it stands or falls with"]
    return f"### Claims\n\n{table(head, lines, 4)}"
