"""The part of the page about MA Separation."""

from __future__ import annotations

from papers.cases import CASES, FFNS, MOE_LENGTH, TRAINED, WIDE
from papers.look import FULL, Record, Results, full, gain, lasts, table, times
from plancc.simulator.table import number, share

RATIOS = ("ma2", "ma2_8_8", "ma2_4_12")
LAYOUTS = ("ma2_4x3", "ma2_2x2x3", "ma2_spare_batch", "ma2_spare")
MANY = 1024
SIZES = (4, 8, 16, 32)


def section(results: Results) -> str:
    """All of it."""
    return "\n\n".join(part(results) for part in (decode, widths, training, scaling))


def at(
    results: Results, name: str, phase: str = "decode", batch: int = MANY, ffn: int = WIDE
) -> Record:
    """The row of a plan at the papers' length."""
    case = name if name in CASES else f"{name}@{ffn}"
    return results.best(case, phase, batch, MOE_LENGTH)


def base_one(results: Results, batch: int = MANY, ffn: int = WIDE) -> Record:
    """The baseline's row of one micro-batch."""
    return results.one(f"moe_base@{ffn}", "decode", batch, MOE_LENGTH)


def decode(results: Results) -> str:
    """Decode at the paper's width, by batch."""
    parts = []
    for batch in (64, 256, MANY):
        lines = [full(base_one(results, batch)), full(at(results, "moe_base", "decode", batch))]
        for name in ("dp_ep", "ma", *RATIOS, *LAYOUTS):
            lines.append(full(at(results, name, "decode", batch)))
        parts.append(f"Batch {batch}:\n\n{table(FULL, lines)}")
    ma, small = at(results, "ma2"), at(results, "ma2", "decode", 256)
    both = "\n\n".join(parts)
    return f"""### Decode

{MOE_LENGTH:,} tokens, expert FFN {WIDE:,}. "By batch": each attention device has sequences of its own and
all heads; "4 heads x 3 blocks" is the paper's grid of head groups and sequence blocks. Attention computed
twice is the paper's replication for fault tolerance; it can be had "by batch" as well.

{both}

At batch {MANY} the separation by batch is {times(gain(base_one(results), ma))} as fast as the baseline
with one micro-batch, {times(gain(at(results, "moe_base"), ma))} of the baseline with its best number, and
{times(gain(at(results, "dp_ep"), ma))} of data and expert parallelism on the same 16 devices. At batch
256 it has {times(gain(at(results, "moe_base", "decode", 256), small))} of the best baseline's speed: four
devices read all experts' weights in each micro-batch, where the others read them with sixteen. Head
groups need an all-reduce after attention that sequences of one's own do not. Computing attention twice
costs {times(gain(at(results, "ma2_spare_batch"), ma))} in speed."""


def widths(results: Results) -> str:
    """Tokens/s by width of the experts and ratio."""
    parts = []
    for phase, batch in (("decode", MANY), ("prefill", 256)):
        lines = []
        for ffn in FFNS:
            found = [
                at(results, "moe_base", phase, batch, ffn), at(results, "dp_ep", phase, batch, ffn),
                *(at(results, name, phase, batch, ffn) for name in RATIOS),
            ]  # fmt: skip
            fastest = max(found[2:], key=lambda row: row["tps"])
            lines.append([
                f"{ffn:,}", *(number(row["tps"]) for row in found),
                CASES[fastest["case"]].label.split(",")[0], times(gain(found[0], fastest)),
                times(gain(found[1], fastest)),
            ])  # fmt: skip
        head = [
            "expert FFN",
            "TP 8 x PP 2, best",
            "DP 16 + EP 16",
            "MA 12 : 4",
            "MA 8 : 8",
            "MA 4 : 12",
        ]
        head += ["best ratio", "against TP 8 x PP 2", "against DP 16 + EP 16"]
        title = f"Tokens/s of {phase}, batch {batch} x {MOE_LENGTH:,}, all on 16 devices"
        parts.append(f"{title}:\n\n{table(head, lines, 0)}")
    both = "\n\n".join(parts)
    return f"""### Prefill, and the width of the experts

In decode attention reads its cache, and of these ratios 12 : 4 is the best; in prefill the wide experts
are most of the work, and the ratio must change with phase and model. In prefill the baseline may have 1,
2, 4, 8 or 16 micro-batches.

{both}

![Tokens/s by expert FFN](ma_ffn.svg)

16 experts on 12 devices are two on some and one on others, so that 4 : 12 is no faster in its experts
than 8 : 8. Data and expert parallelism has no group that waits for the other and is ahead everywhere."""


def training(results: Results) -> str:
    """A training step."""
    lines = []
    for ffn in FFNS:
        for name in ("train_base", "dp_ep", "train_ma", "train_ma_8_8"):
            row = at(results, name, "train", TRAINED, ffn)
            lines.append([f"{ffn:,}", *full(row)])
    return f"""### Training

One step of {TRAINED} sequences of {MOE_LENGTH:,} tokens (the paper's 1024 need more memory for
activations than there is, and would be {1024 // TRAINED} of these with one sum of gradients and one
update). Adam with float32 state. The separation sends its gradients in eight bits, as the paper does:
they are not those of the others.

{table(["expert FFN", *FULL], lines, 2)}"""


def scale_rows(results: Results) -> list[tuple[int, Record, Record, Record]]:
    """Devices; the separation, the baseline with one micro-batch, the best baseline."""
    found = []
    for devices in SIZES:
        if devices == 16:
            found.append((16, at(results, "ma2"), base_one(results), at(results, "moe_base")))
            continue
        name = f"scaled_base@{devices}"
        one = results.one(name, "decode", MANY, MOE_LENGTH)
        found.append((devices, at(results, f"scaled_ma@{devices}"), one, at(results, name)))
    return found


def efficiency(results: Results) -> dict[int, float]:
    """Tokens/s a device over those of 4 devices."""
    rows = {devices: ma["tps_per_device"] for devices, ma, _, _ in scale_rows(results)}
    return {devices: tps / rows[4] for devices, tps in rows.items()}


def scaling(results: Results) -> str:
    """From 4 to 32 devices."""
    kept = efficiency(results)
    lines = [
        [
            str(devices), CASES[ma["case"]].label.split(", by")[0], lasts(ma), share(kept[devices]),
            CASES[best["case"]].label, lasts(one), f"{lasts(best)} ({best['microbatches']})",
            times(gain(one, ma)), times(gain(best, ma)),
        ]
        for devices, ma, one, best in scale_rows(results)
    ]  # fmt: skip
    head = ["devices", "separation", "TPOT", "efficiency", "baseline", "one micro-batch", "best"]
    head += ["gain against one", "against the best"]
    return f"""### More devices

Decode, batch {MANY} x {MOE_LENGTH:,}, expert FFN {WIDE:,}, 3 : 1. Efficiency is tokens/s a device over
that of 4 devices.

{table(head, lines, 0)}

![Scaling](ma_scaling.svg)

The baseline gets its second pipeline stage at 16 devices, and with one micro-batch half of it waits: that
is where the separation overtakes it."""
