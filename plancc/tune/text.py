"""What a search found, as text for people: made of the facts of report.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plancc.passes.estimate_memory import gigabytes
from plancc.simulator.table import NAMES, duration, number, share
from plancc.tune.forms import METRICS

Facts = Mapping[str, Any]
HEAD = ("memory", "devices", "micro", "tokens/s", "per device", "busy", "setting")


def columns(lines: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Lines of cells side by side; the columns of `left` and the last one begin on the left."""
    width = [max(map(len, column)) for column in zip(*lines, strict=True)]
    last = len(width) - 1
    return [
        "  ".join(
            cell.ljust(width[i]) if i in left or i == last else cell.rjust(width[i])
            for i, cell in enumerate(line)
        ).rstrip()
        for line in lines
    ]


def words(sets: Mapping[str, str]) -> str:
    """`--set tp=2 --set dp=4`."""
    return " ".join(f"--set {name}={text}" for name, text in sets.items()) or "(as the plan is)"


def search_text(facts: Facts) -> str:
    """A search: each case, what is best over all of them, how far it went."""
    lines = [f"predicted, on {facts['cluster']}: {facts['plan']}, {METRICS[facts['metric']].title}"]
    for case in facts["cases"]:
        lines += case_lines(case)
    if len(facts["cases"]) > 1:
        best = facts["best"]
        found = words(best["set"]) if best else "no setting fits in all of them"
        lines.append(f"over all cases (geometric mean): {found}")
    lines += searched_lines(facts["searched"])
    return "\n".join([*lines, *notes(facts)])


def notes(facts: Facts) -> list[str]:
    """What the prediction stands on."""
    return [f"note: {text}" for text in facts["assumptions"]]


def case_lines(case: Facts) -> list[str]:
    """One case: the best setting, the front, what did not fit, the sizes of pools."""
    title = f"{case['phase']}, batch {case['batch']} x {case['seq_len']}"
    counts, best = case["counts"], case["best"]
    missing = [f"{counts['does_not_fit']} do not fit in memory"] * bool(counts["does_not_fit"])
    missing += [f"{n}: {reason}" for reason, n in counts["not_simulated"].items()]
    if best is None:
        return [f"{title}: nothing fits" + (f" ({'; '.join(missing)})" if missing else "")]
    lines = [f"{title}: best is {words(best['set'])}"]
    heading = (NAMES[case["phase"]], *HEAD)
    mark = {id(row): "  best" * (row["set"] == best["set"]) for row in case["front"]}
    table = [
        heading,
        *((*row_cells(row["row"]), words(row["set"]) + mark[id(row)]) for row in case["front"]),
    ]
    if not any(mark.values()):
        table.append((*row_cells(best["row"]), f"{words(best['set'])}  best"))
    lines += ["  front of time against memory:", *(f"    {line}" for line in columns(table))]
    fits = counts["fits"]
    others = f", {', '.join(missing)}" if missing else ""
    lines.append(f"  {fits} distinct setting{'s' * (fits != 1)} fit{'s' * (fits == 1)}{others}")
    return lines + pool_lines(case["pools"])


def row_cells(row: Facts) -> tuple[str, ...]:
    """Time, memory, devices, micro-batches, tokens/s, per device, busy."""
    seconds = next(row[key] for key in ("tpot_s", "ttft_s", "step_s") if row[key] is not None)
    return (
        duration(seconds), gigabytes(1e9 * max(row["memory_gb"].values(), default=0.0)),
        str(row["devices"]), str(row["microbatches"]), number(row["tps"]),
        number(row["tps_per_device"]), share(row["utilisation"]["busy"]),
    )  # fmt: skip


def pool_lines(pools: Sequence[Facts]) -> list[str]:
    """What each size of the pools gives here, and how to have it."""
    if not pools:
        return []
    table = []
    fastest = min((p["seconds"] for p in pools if p["fits"]), default=None)
    for one in pools:
        how = "taken" if one["taken"] else ""
        how = how or (words(one["set"]) if one["set"] else "no value of a parameter gives it here")
        time = duration(one["seconds"]) if one["fits"] else "does not fit"
        best = "  fastest" if one["fits"] and one["seconds"] == fastest else ""
        memory = gigabytes(1e9 * one["memory_gb"]) if one["memory_gb"] is not None else "-"
        table.append((sizes_words(one["sizes"]), time, memory, how + best))
    return ["  sizes of the pools here:", *(f"    {line}" for line in columns(table))]


def searched_lines(facts: Facts) -> list[str]:
    """How far a search went."""
    lines = []
    for name, values in facts["values"].items():
        out = facts["values_left_out"].get(name, 0)
        more = f"; {out} other values of its domain: --search {name}=..." if out else ""
        lines.append(f"  {name}: {', '.join(values)}{more}")
    for name in facts["skipped"]:
        lines.append(f"  {name}: as it is, for it has no domain: --search {name}=...")
    told = f"{facts['tried']:,} of {facts['settings']:,} settings tried"
    if facts["complete"]:
        told = (
            f"all {facts['settings']:,} settings tried"
            if facts["settings"] > 1
            else "one setting tried"
        )
    elif facts["stopped"]:
        told = f"stopped by {facts['stopped']}: {told}, {facts['left_out']:,} left out"
    else:
        starts = facts["descents"]
        told += f", by coordinate descent from {starts} starts; {facts['left_out']:,} left out"
    parts = [f"{facts['simulated']:,} simulated"]
    parts += [f"{facts['same']:,} the same plan as another"] * bool(facts["same"])
    parts += [f"{sum(r['count'] for r in facts['refused'].values()):,} refused"] * bool(
        facts["refused"]
    )
    lines = [f"searched: {told} ({', '.join(parts)})", *lines]
    for code, one in facts["refused"].items():
        what = "too few devices" if code == "devices" else code
        lines.append(f"  {what}: {one['count']:,}, such as {words(one['set'])}: {one['reason']}")
    return lines


def ratio_text(facts: Facts) -> str:
    """Ratios: the closed form and the search beside each other, case by case."""
    lines = [f"predicted, on {facts['cluster']}: {facts['plan']}, attention : experts"]
    for one in facts["ratios"]:
        lines += ratio_lines(one)
    return "\n".join([*lines, *notes(facts)])


def ratio_lines(one: Facts) -> list[str]:
    """One case."""
    title = f"{one['phase']}, batch {one['batch']} x {one['seq_len']}"
    if not one["splits"]:
        return [f"{title}: nothing fits", *searched_lines(one["searched"])]
    lines = [f"{title}, {one['devices']} devices"]
    closed, best = one["closed_form"], one["splits"][0]
    if closed is not None:
        attention, experts = closed["seconds"]
        lines.append(
            f"  closed form: balanced at {closed['attention']:.1f} : {closed['experts']:.1f}; with whole "
            f"devices and experts {closed['whole'][0]}:{closed['whole'][1]} (a layer: attention "
            f"{duration(attention)}, experts {duration(experts)})"
        )
    lines.append(f"  search: {best['attention']}:{best['experts']} with {words(best['set'])}")
    heading = ("ratio", NAMES[one["phase"]], *HEAD)
    table = [heading, *(
        (f"{s['attention']}:{s['experts']}", *row_cells(s["row"]), words(s["set"])) for s in one["splits"]
    )]  # fmt: skip
    lines += [f"    {line}" for line in columns(table)]
    if one["fewer"]:
        lines.append(f"  {one['fewer']} other settings fit on fewer devices")
    return lines + searched_lines(one["searched"])


def threshold_text(facts: Facts) -> str:
    """Thresholds: closed form and simulation beside each other, batch by batch."""
    first = facts["thresholds"][0]
    low = first["lengths"][0]
    high = max(one["lengths"][-1] for one in facts["thresholds"])
    lines = [
        f"predicted, on {facts['cluster']}: {facts['plan']}, {first['phase']}, from which length a pool pays "
        f"({low} to {high})"
    ]
    heading = (
        "batch",
        "pool",
        "hop a layer",
        "closed form",
        "as length",
        "simulated",
        "tokens in flight",
        "",
    )
    table: list[tuple[str, ...]] = [heading]
    table += [crossover_cells(one, c) for one in facts["thresholds"] for c in one["crossovers"]]
    lines += [f"  {line}" for line in columns(table, (1,))]
    lines += [line for one in facts["thresholds"] for line in best_lines(one)]
    lines.append(
        "what decides is tokens in flight (batch x length), not length: a threshold of `seq_len` holds for "
        "its batch, one of `tokens` for all"
    )
    return "\n".join([*lines, *notes(facts)])


def crossover_cells(one: Facts, crossover: Facts) -> tuple[str, ...]:
    """One size of the pool for one batch."""
    batch, closed, found = one["batch"], crossover["closed"], crossover["searched"]
    pool = sizes_words(crossover["sizes"])
    low = one["lengths"][0]
    length = "never" if found is None else f"from {found:.0f}" if found else f"from {low} or less"
    return (
        str(batch), pool, duration(crossover["hop"]),
        "never" if closed is None else f"{closed:,.0f} tokens",
        "-" if closed is None else f"{closed / batch:,.0f}",
        length, "-" if not found else f"{found * batch:,.0f}",
        "then slower again" if crossover["lost"] else "",
    )  # fmt: skip


def sizes_words(sizes: Mapping[str, int]) -> str:
    """`fa.sp = 8`, or `no pool`."""
    return ", ".join(f"{name} = {size}" for name, size in sizes.items() if size) or "no pool"


def best_lines(one: Facts) -> list[str]:
    """The value to set for one batch."""
    name = one["name"]
    if one["best"] is None:
        return [f"batch {one['batch']}: no {name} fits at every length"]
    times = [duration(one["seconds"])]
    if one["own_seconds"] is not None:
        times.append(f"{duration(one['own_seconds'])} with {name}={one['own']}")
    if one["base_seconds"] is not None:
        times.append(f"{duration(one['base_seconds'])} on the base alone")
    span = f"{one['lengths'][0]} to {one['lengths'][-1]}"
    times.append(f"geometric means over the lengths {span}")
    lines = [f"batch {one['batch']}: --set {name}={one['best']}   ({', '.join(times)})"]
    first, *others = one["steps"]
    held = [f"{sizes_words(step['sizes'])} when seq_len > {step['seq_len'] - 1}" for step in others]
    steps = ", then ".join([sizes_words(first["sizes"]), *held])
    lines.append(f"  the fastest at every length: {steps} ({duration(one['steps_seconds'])})")
    if one["base_seconds"] is not None and one["base_seconds"] <= one["seconds"]:
        lines.append("  over these lengths the base alone is as fast: the pool does not pay")
    if one["full"] is not None:
        lines.append(f"  from {one['full']:.0f} on the base alone does not fit in memory")
    if one["left_out"]:
        out = ", ".join(map(str, one["left_out"]))
        lines.append(f"  nothing fits at {out}: left out of these means")
    return lines
