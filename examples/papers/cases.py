"""The plans that are compared, on which model and hardware, and every point at which they are simulated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

HERE = Path(__file__).parent
CLUSTER = "dgx_a100_40"
LENGTHS = tuple(2**i for i in range(9, 16))
LONGER = (65536, 131072)
BATCHES = (1, 16, 64, 1024)
TRAINED = 64
"""Sequences of a training step: a sixteenth of the paper's 1024, which do not fit at once."""
FFNS = (1536, 2048, 4096, 8192, 16384)
MOE_LENGTH = 2048


@dataclass(frozen=True)
class Case:
    """A plan with its parameters on a model. `without` is text that is left out of the plan's file."""

    label: str
    plan: str
    sets: str = ""
    model: str = "dense"
    args: str = ""
    hardware: str = ""
    preset: str = "honest"
    without: str = ""

    @property
    def text(self) -> str:
        """The plan as it is compiled."""
        return (HERE / "plans" / f"{self.plan}.plan").read_text("utf-8").replace(self.without, "")

    @property
    def command(self) -> str:
        """What says the same to `plancc simulate`."""
        left = " without `" + self.without.strip() + "`" if self.without else ""
        words = [f"{self.plan}.plan{left}", *(f"--set {word}" for word in self.sets.split())]
        words += [f"--model-arg {word}" for word in self.args.split()]
        words += [f"--hardware {word}" for word in self.hardware.split()]
        words += [f"--preset {self.preset}"] if self.preset != "honest" else []
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class Point:
    """One row to simulate; `micro` 0: the plan's own number of micro-batches."""

    case: str
    phase: str
    batch: int
    seq_len: int
    micro: int = 0


POOL = "p={p} long=255 depth={depth} batches={batches}"
HEADS = "hp={hp} sp={sp} long=255 depth=1 batches={batches}"
ONE_NIC = "links.network.nics=1"
GROUPED = "kv_heads=8"
TREE = " (tree = [node, pod])"


def pool(p: int, depth: int, batches: int, label: str, **rest: str) -> Case:
    """FA Pool in blocks."""
    return Case(label, "fa_pool", POOL.format(p=p, depth=depth, batches=batches), **rest)


def heads(hp: int, sp: int, batches: int, label: str, **rest: str) -> Case:
    """FA Pool by heads."""
    return Case(label, "fa_pool_heads", HEADS.format(hp=hp, sp=sp, batches=batches), **rest)


TENSOR = Case("TP 8 x PP 2", "tensor_pipeline")
REPLICAS = Case("5 x TP 8", "tensor_pipeline", "replicas=5 stages=1")
DENSE = {
    "base": TENSOR,
    "pool": pool(32, 1, 1, "FA Pool 8 + 32"),
    "pool2": pool(32, 1, 2, "FA Pool 8 + 32, ping-pong"),
    "pool4": pool(32, 4, 1, "FA Pool 8 + 32, in 4 chunks of heads"),
    "heads": heads(32, 1, 1, "FA Pool 8 + 32 by heads"),
    "heads2": heads(32, 1, 2, "FA Pool 8 + 32 by heads, ping-pong"),
    "shared": Case("the cache on all 40 (8 of them the base)", "fa_pool_shared"),
    "replicas": REPLICAS,
    "kvp": Case("TP 8 x KV 5", "kv_parallel"),
    "pool_8": pool(8, 1, 2, "FA Pool 8 + 8, ping-pong"),
    "pool_16": pool(16, 1, 2, "FA Pool 8 + 16, ping-pong"),
    "base_nic": Case("TP 8 x PP 2, one NIC", "tensor_pipeline", hardware=ONE_NIC),
    "pool_nic": pool(32, 1, 1, "FA Pool 8 + 32, one NIC", hardware=ONE_NIC),
    "pool2_nic": pool(32, 1, 2, "FA Pool 8 + 32, ping-pong, one NIC", hardware=ONE_NIC),
    "heads2_nic": heads(32, 1, 2, "FA Pool by heads, ping-pong, one NIC", hardware=ONE_NIC),
    "pool_flat": pool(32, 1, 1, "FA Pool 8 + 32, flat merge", without=TREE),
    **{f"{name}_graph": replace(found, preset="graph") for name, found in (
        ("base", TENSOR), ("pool2", pool(32, 1, 2, "FA Pool 8 + 32, ping-pong")),
        ("heads", heads(32, 1, 1, "FA Pool 8 + 32 by heads")),
        ("heads2", heads(32, 1, 2, "FA Pool 8 + 32 by heads, ping-pong")),
        ("replicas", REPLICAS),
    )},
    "base_gqa": Case("TP 8 x PP 2, 8 KV heads", "tensor_pipeline", args=GROUPED),
    "pool2_gqa": pool(32, 1, 2, "FA Pool 8 + 32, ping-pong, 8 KV heads", args=GROUPED),
    "heads2_gqa": heads(8, 4, 2, "FA Pool by 8 heads x 4 blocks, 8 KV heads", args=GROUPED),
    "replicas_gqa": Case(
        "5 x TP 8, 8 KV heads", "tensor_pipeline", "replicas=5 stages=1", args=GROUPED
    ),
}  # fmt: skip


def separate(label: str, ffn: int, plan: str = "ma_separation", **sets: int) -> Case:
    """MA Separation."""
    words = " ".join(f"{name}={value}" for name, value in sets.items())
    return Case(label, plan, words, "moe", f"ffn={ffn}")


def mixtures(ffn: int) -> dict[str, Case]:
    """The plans of the mixture of experts with a width of experts."""
    args = f"ffn={ffn}"
    return {
        f"moe_base@{ffn}": Case("TP 8 x PP 2", "tensor_pipeline_moe", "", "moe", args),
        f"dp_ep@{ffn}": Case("DP 16 + EP 16", "data_experts", "", "moe", args),
        f"ma@{ffn}": separate("MA 12 : 4, by batch", ffn, chunks=1),
        f"ma2@{ffn}": separate("MA 12 : 4, by batch, ping-pong", ffn, chunks=2),
        f"ma2_8_8@{ffn}": separate("MA 8 : 8, by batch, ping-pong", ffn, rep=8, ep=8),
        f"ma2_4_12@{ffn}": separate("MA 4 : 12, by batch, ping-pong", ffn, rep=4, ep=12),
        f"train_base@{ffn}": Case(
            "TP 8 x PP 2, 1F1B", "tensor_pipeline_moe", "microbatches=16 schedule=1F1B", "moe", args
        ),
        f"train_ma@{ffn}": separate("MA 12 : 4, by batch, ping-pong", ffn, "ma_training"),
        f"train_ma_8_8@{ffn}": separate(
            "MA 8 : 8, by batch, ping-pong", ffn, "ma_training", rep=8, ep=8
        ),
    }  # fmt: skip


def scaled() -> dict[str, Case]:
    """The separation and its baseline on 4, 8 and 32 devices."""
    args, model = f"ffn={FFNS[-1]}", "moe"
    found = {}
    for devices, tp, stages in ((4, 4, 1), (8, 8, 1), (32, 8, 4)):
        attending, experts = devices * 3 // 4, devices // 4
        found[f"scaled_ma@{devices}"] = separate(
            f"MA {attending} : {experts}", FFNS[-1], rep=attending, ep=experts
        )
        found[f"scaled_base@{devices}"] = Case(
            f"TP {tp} x PP {stages}", "tensor_pipeline_moe", f"tp={tp} stages={stages}", model, args
        )
    return found


WIDE = FFNS[-1]
MOE = {
    **{name: case for ffn in FFNS for name, case in mixtures(ffn).items()},
    **scaled(),
    "ma2_4x3": separate("MA 12 : 4, 4 heads x 3 blocks, ping-pong", WIDE, rep=1, hp=4, sp=3),
    "ma2_2x2x3": separate(
        "MA 12 : 4, 2 batches x 2 heads x 3 blocks, ping-pong", WIDE, rep=2, hp=2, sp=3
    ),
    "ma2_spare": separate(
        "MA 12 : 4, attention computed twice (2 heads x 3 blocks), ping-pong", WIDE,
        copies=2, rep=1, hp=2, sp=3,
    ),
    "ma2_spare_batch": separate(
        "MA 12 : 4, attention computed twice (by batch), ping-pong", WIDE, copies=2, rep=6
    ),
}  # fmt: skip
CASES = {**DENSE, **MOE}


def points() -> list[Point]:
    """Everything that the page needs, each once."""
    return list(dict.fromkeys((*dense_decode(), *dense_prefill(), *mixture_points())))


def counts(batch: int, most: int = 4) -> range:
    """The micro-batches of a pipeline that are tried: 1 .. twice the stages."""
    return range(1, min(batch, most) + 1)


def dense_decode() -> Iterator[Point]:
    """Decode of the dense model."""
    for batch in BATCHES:
        for n in (*LENGTHS, *(LONGER if batch < 64 else ())):
            for m in counts(batch):
                yield Point("base", "decode", batch, n, m)
            for case in ("pool", "pool2", "heads", "heads2", "shared", "replicas", "kvp"):
                yield Point(case, "decode", batch, n)
    for batch in (64, 1024):
        for n in (4096, 8192, 16384):
            for case in ("pool_8", "pool_16"):
                yield Point(case, "decode", batch, n)
        for case in ("pool_nic", "pool2_nic", "heads2_nic", "pool_flat"):
            yield Point(case, "decode", batch, 16384)
        for case in ("base_nic", "base_gqa", "base_graph"):
            for m in counts(batch):
                yield Point(case, "decode", batch, 16384, m)
        for case in ("pool2_graph", "heads_graph", "heads2_graph", "replicas_graph"):
            yield Point(case, "decode", batch, 16384)
        for case in ("pool2_gqa", "heads2_gqa", "replicas_gqa"):
            yield Point(case, "decode", batch, 16384)


def dense_prefill() -> Iterator[Point]:
    """Prefill of the dense model."""
    for batch in BATCHES:
        for n in (*LENGTHS, *(LONGER if batch == 1 else ())):
            for m in (*counts(batch), *(m for m in (8, 16) if m <= batch)):
                yield Point("base", "prefill", batch, n, m)
            for case in ("pool4", "heads", "replicas"):
                yield Point(case, "prefill", batch, n)


def mixture_points() -> Iterator[Point]:
    """Decode, prefill and training of the mixture of experts."""
    for ffn in FFNS:
        wide = ffn == WIDE
        for batch in (64, 256, 1024) if wide else (1024,):
            for m in counts(batch):
                yield Point(f"moe_base@{ffn}", "decode", batch, MOE_LENGTH, m)
            for case in ("dp_ep", "ma", "ma2", "ma2_8_8", "ma2_4_12"):
                yield Point(f"{case}@{ffn}", "decode", batch, MOE_LENGTH)
        for m in (1, 2, 4, 8, 16):
            yield Point(f"moe_base@{ffn}", "prefill", 256, MOE_LENGTH, m)
        for case in ("dp_ep", "ma", "ma2", "ma2_8_8", "ma2_4_12"):
            yield Point(f"{case}@{ffn}", "prefill", 256, MOE_LENGTH)
        for case in ("train_base", "dp_ep", "train_ma", "train_ma_8_8"):
            yield Point(f"{case}@{ffn}", "train", TRAINED, MOE_LENGTH)
    for case in ("ma2_4x3", "ma2_2x2x3", "ma2_spare", "ma2_spare_batch"):
        for batch in (64, 256, 1024):
            yield Point(case, "decode", batch, MOE_LENGTH)
    for devices in (4, 8, 32):
        yield Point(f"scaled_ma@{devices}", "decode", 1024, MOE_LENGTH)
        for m in counts(1024, 8 if devices == 32 else 1):
            yield Point(f"scaled_base@{devices}", "decode", 1024, MOE_LENGTH, m)
