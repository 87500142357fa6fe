"""Closed forms: when an attention pool pays, and how to split devices between attention and experts.

Roofline per layer: a product takes max(FLOPs / reached FLOP/s, bytes / reached bytes/s). They leave out
pipelining, overlap, launches and what lies outside attention and FFN; the simulation has these.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from plancc.simulator.hardware import Hardware
from plancc.tune.figures import Figures, Rates

PARTIAL = 4
"""Bytes of an element of a partial attention result: float32, as partials are merged."""


def pool_tokens(figures: Figures, keys: float, hop: float, base: int, pool: int) -> float:
    """Tokens in flight (batch x length) from which a pool pays in decode; infinity if it never does.

    Of a layer, `base` ranks read B n c / (base M) seconds long, the pool B n c / (pool M) and the `hop`
    there and back: equal at B n = M hop / (c (1 / base - 1 / pool)), with c bytes of keys and values per
    token and layer, and M = `keys` bytes/s. Serial: no computation hides the hop.
    """
    gain = 1 / base - 1 / pool
    return keys * hop / (figures.cached * gain) if gain > 0 else inf


def pool_hop(
    figures: Figures, hardware: Hardware, base: Sequence[int], pool: Sequence[int], batch: int
) -> float:
    """Seconds of one layer's way to the pool and back in decode, for `batch` sequences.

    There: to each of the N nodes of the pool go a base rank's shares of the queries [batch, hidden / base],
    which are gathered inside the node. Back: a node reduces its partial results and their log-sum-exps, in
    float32, and each base rank gets its share from every node.
    """
    nodes: dict[int, list[int]] = {}
    for rank in pool:
        nodes.setdefault(hardware.node(rank), []).append(rank)
    first = tuple(next(iter(nodes.values())))
    latency, second = hardware.message(base[0], pool[0], 1)
    latency += hardware.overhead(base[0], pool[0])
    query = batch * figures.hidden * figures.itemsize
    there = latency + len(nodes) * query / len(base) * second
    there += hardware.verb_seconds("all_gather", first, query // len(first))
    result = batch * figures.hidden * PARTIAL
    merged = result + batch * figures.heads * PARTIAL
    back = hardware.verb_seconds("reduce_scatter", first, merged)
    back += latency + len(nodes) * result / len(base) * second
    return there + back


@dataclass(frozen=True, slots=True)
class Balance:
    """A split of devices in which attention and experts finish together, and the best whole numbers.

    `attention` and `experts` add up to the devices, and may be fractions. `whole` is the best of (devices for
    attention, for experts) where each expert lives on one device: the slower of both is the fastest, then
    their sum. `seconds` is what these take (attention, experts), for one layer.
    """

    attention: float
    experts: float
    whole: tuple[int, int]
    seconds: tuple[float, float]


def product(flops: float, size: float, rates: Rates) -> float:
    """Seconds of a matrix product on one device: bound by FLOPs, or by reading its weights."""
    return max(flops / rates.matmul, size / rates.weights)


def attention_seconds(
    figures: Figures, rates: Rates, phase: str, batch: float, seq_len: int, devices: float
) -> float:
    """Seconds of attention and its projections in one layer, the batch cut over `devices`.

    Decode reads the keys and values of all tokens; the other phases compute 2 n^2 hidden FLOPs a sequence
    (causal), training three times as much (backward: two products for each).
    """
    rows = batch if phase == "decode" else batch * seq_len
    weights = figures.attention * figures.itemsize
    times = 3 if phase == "train" else 1
    projections = product(2 * rows * figures.attention / devices, weights, rates)
    if phase == "decode":
        return batch * seq_len * figures.cached / (devices * rates.keys) + projections
    width = figures.heads * figures.head_dim
    scores = 2 * batch * seq_len**2 * width / (devices * rates.attention)
    return times * (scores + projections)


def expert_seconds(
    figures: Figures, rates: Rates, phase: str, batch: float, seq_len: int, devices: float
) -> float:
    """Seconds of the experts of one layer, cut over `devices`, with an even router.

    Read are the experts that get a token: E (1 - (1 - k / E)^rows) of them.
    """
    rows = batch if phase == "decode" else batch * seq_len
    share = figures.top_k / figures.experts
    used = figures.experts * (1 - (1 - share) ** rows)
    flops = 2 * rows * figures.top_k * figures.ffn / devices
    size = used * figures.ffn * figures.itemsize / devices
    return (3 if phase == "train" else 1) * product(flops, size, rates)


def balance(
    figures: Figures, rates: Rates, phase: str, batch: int, seq_len: int, devices: int,
    turns: int = 1,
) -> Balance:  # fmt: skip
    """The split of `devices` (2 or more) at which attention takes as long as the experts.

    With `turns` micro-batches both read their weights as many times.
    """

    def seconds(attention: float) -> tuple[float, float]:
        """What both take if attention has so many devices."""
        given = (figures, rates, phase, batch / turns, seq_len)
        return (
            turns * attention_seconds(*given, attention),
            turns * expert_seconds(*given, devices - attention),
        )

    def fullest(attention: int) -> tuple[float, float]:
        """The same, with the experts of the fullest device."""
        held = -(-figures.experts // (devices - attention))
        return seconds(attention)[0], seconds(devices - figures.experts / held)[1]

    even = bisect(lambda a: seconds(a)[0] - seconds(a)[1], 0.0, float(devices))
    whole = min(range(1, devices), key=lambda a: (max(fullest(a)), sum(fullest(a))))
    return Balance(even, devices - even, (whole, devices - whole), fullest(whole))


def bisect(falling: Callable[[float], float], low: float, high: float, steps: int = 60) -> float:
    """Where a falling function of low..high changes its sign, without asking at the ends."""
    for _ in range(steps):
        middle = (low + high) / 2
        if falling(middle) > 0:
            low = middle
        else:
            high = middle
    return (low + high) / 2
