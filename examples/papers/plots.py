"""The pictures of the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from papers import page_moe as moe
from papers.cases import BATCHES, CASES, FFNS, TRAINED
from papers.look import Record, Results, gain, lengths, seconds
from papers.page_dense import POOLS
from plancc.show.plot import Axis, Chart, Line, picture

GREY = "#777777"
ROUND = tuple(digit * 10.0**power for power in range(-1, 5) for digit in (1, 2, 5))
COLOURS = {
    "pool": "#56B4E9", "pool2": "#0072B2", "pool4": "#0072B2", "heads": "#E69F00", "heads2": "#D55E00",
    "replicas": "#009E73", "kvp": "#CC79A7",
}  # fmt: skip


def names(values: Sequence[int]) -> list[tuple[float, str]]:
    """Ticks at powers of two: `512`, `16K`."""
    return [(n, powers(n)) for n in values]


def powers(n: int) -> str:
    """A power of two: `512`, `16K`, `2M`."""
    return f"{n >> 20}M" if n >= 1 << 20 else f"{n >> 10}K" if n >= 1024 else str(n)


def curve(
    results: Results,
    case: str,
    phase: str,
    batch: int,
    row_of: Callable[[str, str, int, int], Record],
) -> list[tuple[float, float]]:
    """(length, milliseconds) of a case, where it fits."""
    found = []
    for n in lengths(results, case, phase, batch):
        time = seconds(row_of(case, phase, batch, n))
        if time is not None:
            found.append((n, time * 1e3))
    return found


def by_length(results: Results, phase: str, batch: int, cases: Sequence[str], what: str) -> Chart:
    """Times by length."""
    lines = [
        Line("TP 8 x PP 2, one micro-batch", curve(results, "base", phase, batch, results.one),
             GREY, dash="5 4", mark=""),
        Line("TP 8 x PP 2, the best", curve(results, "base", phase, batch, results.best), "#000000"),
    ]  # fmt: skip
    for case in cases:
        points = curve(results, case, phase, batch, results.best)
        lines.append(Line(CASES[case].label, points, COLOURS[case]))
    ticks = names(list(lengths(results, "base", phase, batch)))
    title = f"{what} (ms) by length, batch {batch}, predicted"
    heights = [y for line in lines for _, y in line.points]
    first = max(m for m in ROUND if m <= min(heights))
    last = min(m for m in ROUND if m >= max(heights))
    marks = [m for m in ROUND if first <= m <= last]
    y = Axis("ms", True, marks[0], marks[-1], [(m, f"{m:g}") for m in marks])
    return Chart(title, lines, x=Axis("length", True, ticks=ticks), y=y, height=260)


def fa_decode(results: Results) -> str:
    """TPOT by length."""
    cases = ("pool", "pool2", "heads2", "replicas", "kvp")
    return picture([by_length(results, "decode", batch, cases, "TPOT") for batch in (1, 64, 1024)])


def fa_prefill(results: Results) -> str:
    """TTFT by length."""
    cases = ("pool4", "heads", "replicas")
    return picture([by_length(results, "prefill", batch, cases, "TTFT") for batch in (1, 16)])


def fa_crossover(results: Results) -> str:
    """The gain of the best pool by tokens in flight."""
    charts = []
    for against, case, row_of, most in (
        ("TP 8 x PP 2 with one micro-batch (16 devices)", "base", results.one, 4.5),
        ("TP 8 x PP 2 with the best of 1 to 4 (16 devices)", "base", results.best, 4.5),
        ("5 x TP 8 (40 devices)", "replicas", results.best, 1.5),
    ):  # fmt: skip
        lines = []
        for batch in BATCHES:
            points = []
            for n in lengths(results, case, "decode", batch):
                mine = results.fastest(POOLS, "decode", batch, n)
                found = gain(row_of(case, "decode", batch, n), mine)
                if found is not None:
                    points.append((float(batch * n), found))
            lines.append(Line(f"batch {batch}", points))
        ticks = [(2.0**at, powers(2**at)) for at in range(9, 25, 3)]
        limits = [(1.0, "break-even"), *([(3.2, "the paper's 3.2x")] if most > 3.2 else [])]
        charts.append(Chart(
            f"FA Pool's gain in TPOT over {against}, predicted", lines,
            x=Axis("tokens in flight (batch x length)", True, 512, 2.0**24, ticks),
            y=Axis("times", low=0, high=most), limits=limits, height=200,
        ))  # fmt: skip
    return picture(charts)


def ma_ffn(results: Results) -> str:
    """Tokens/s by width of the experts."""
    charts = []
    usual = {"moe_base": "TP 8 x PP 2, best", "dp_ep": "DP 16 + EP 16", "ma2": "MA 12 : 4",
             "ma2_8_8": "MA 8 : 8", "ma2_4_12": "MA 4 : 12"}  # fmt: skip
    trained = {"train_base": "TP 8 x PP 2, best", "dp_ep": "DP 16 + EP 16", "train_ma": "MA 12 : 4",
               "train_ma_8_8": "MA 8 : 8"}  # fmt: skip
    colours = {"TP 8 x PP 2, best": "#000000", "DP 16 + EP 16": "#009E73", "MA 12 : 4": "#0072B2",
               "MA 8 : 8": "#D55E00", "MA 4 : 12": "#CC79A7"}  # fmt: skip
    for phase, batch, cases in (
        ("decode", moe.MANY, usual), ("prefill", 256, usual), ("train", TRAINED, trained)
    ):  # fmt: skip
        lines = [
            Line(label, [(ffn, moe.at(results, name, phase, batch, ffn)["tps"] / 1e3) for ffn in FFNS],
                 colours[label])
            for name, label in cases.items()
        ]  # fmt: skip
        ticks = [(float(ffn), f"{ffn:,}") for ffn in FFNS]
        what = phase.replace("train", "training")
        charts.append(Chart(
            f"1000 tokens/s of {what} by expert FFN, batch {batch}, 16 devices, predicted", lines,
            x=Axis("expert FFN", True, ticks=ticks), y=Axis("1000 tokens/s", low=0), height=200,
        ))  # fmt: skip
    return picture(charts)


def ma_scaling(results: Results) -> str:
    """Tokens/s a device from 4 to 32 devices."""
    rows = moe.scale_rows(results)
    lines = [
        Line(label, [(float(row[0]), row[at]["tps_per_device"]) for row in rows], colour)
        for at, label, colour in (
            (1, "MA Separation, 3 : 1", "#0072B2"), (2, "baseline, one micro-batch", GREY),
            (3, "baseline, the best", "#000000"),
        )
    ]  # fmt: skip
    ticks = [(float(n), str(n)) for n in moe.SIZES]
    return picture([Chart(
        "tokens/s a device, decode, batch 1024 x 2048, predicted", lines,
        x=Axis("devices", True, ticks=ticks), y=Axis("tokens/s a device", low=0),
    )])  # fmt: skip


PICTURES = {
    "fa_decode.svg": fa_decode, "fa_crossover.svg": fa_crossover, "fa_prefill.svg": fa_prefill,
    "ma_ffn.svg": ma_ffn, "ma_scaling.svg": ma_scaling,
}  # fmt: skip
