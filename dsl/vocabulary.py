"""The words of the language and what they may hold: dims, operators, settings, wire types.

One table for the checks, the documentation and did-you-mean. Adding a setting is one row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

EDITIONS = ("1",)
STATEMENTS = (
    "import", "param", "let", "require", "cluster", "model", "mesh", "pool",
    "place", "when", "comm", "pipeline", "template", "use",
)  # fmt: skip

# Statements that may stand in an imported file, in a `when` and in a template.
IMPORTABLE = ("import", "param", "let", "require", "cluster", "model", "template")
IN_WHEN = ("place", "comm", "use", "when")
IN_TEMPLATE = ("place", "comm", "use", "when", "pipeline")

# Dim -> class. One axis has at most one job per class on a target.
DIMS: dict[str, str] = {
    "batch": "flow", "seq": "flow", "q_seq": "flow", "kv_seq": "flow", "heads": "flow",
    "kv_heads": "flow", "head_dim": "flow", "hidden": "flow", "ffn": "flow", "vocab": "flow",
    "experts": "flow", "in": "flow", "out": "flow", "tokens": "flow",
    "params": "state", "grads": "state", "optim": "state",
    "layers": "depth",
}  # fmt: skip
# Dims whose size the model block can state, and dims that make an axis a tensor axis (P601).
SIZED_DIMS = ("heads", "kv_heads", "head_dim", "hidden", "ffn", "vocab", "experts", "layers")
TENSOR_DIMS = ("heads", "kv_heads", "head_dim", "hidden", "ffn", "vocab")

INPUTS = ("seq_len", "batch", "tokens")
PHASES = {"infer": ("forward", "prefill", "decode"), "train": ("train",)}
PHASE_WORDS = ("forward", "prefill", "decode", "train")
OPERATORS = (
    "attention", "experts", "kv_cache", "linear", "matmul", "embedding", "softmax",
    "layer_norm", "rms_norm", "conv", "add", "mul", "gelu", "silu", "relu", "rope",
)  # fmt: skip
TENSOR_CLASSES = ("params", "grads", "optim", "activations", "q", "k", "v", "kv", "out")
FUNCTIONS = ("ceil", "floor", "min", "max", "abs")
SCHEDULES = ("GPipe", "1F1B", "interleaved", "zero_bubble")
COMBINE_BY = ("logsumexp", "sum", "mean", "max", "min")

# Wire type -> whether values lose digits against bf16.
WIRE_TYPES: dict[str, bool] = {
    "fp64": False, "fp32": False, "tf32": False, "bf16": False, "fp16": False,
    "fp8": True, "fp8_e4m3": True, "fp8_e5m2": True, "int8": True, "int4": True,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Kind:
    """What a setting takes: `units` of numbers, bare `words`, `calls` (name -> options).

    Units: int, number, bool, text, bytes, bytes/s, seconds, ratio. `each` means a list of
    words, `table` a list of texts, `dynamic` that the value may depend on inputs, `args` how
    many plain arguments a call takes.
    """

    text: str
    units: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    calls: Mapping[str, Mapping[str, Kind]] = field(default_factory=dict)
    args: int = 0
    minimum: int | None = None
    dynamic: bool = False
    each: bool = False
    table: bool = False
    code: str = "P110"


COUNT = Kind("a number from 1", ("int",), minimum=1)
NATURAL = Kind("a number from 0", ("int",), minimum=0)
BYTES = Kind("a size such as 64GB", ("bytes",))
RATE = Kind("a rate such as 450GB/s", ("bytes/s",))
SECONDS = Kind("a time such as 30s", ("seconds",))
NUMBER = Kind("a number", ("int", "number"))
RATIO = Kind("a share such as 10%", ("ratio", "number"))
FLAG = Kind("true or false", ("bool",))
TEXT = Kind("text", ("text",))
BLOCK = Kind(
    "`balanced` or a block size such as ceil(seq_len / sp)", ("int",), ("balanced",),
    minimum=1, dynamic=True,
)  # fmt: skip
_BLOCKS: Mapping[str, Kind] = {"block": COUNT, "error_feedback": FLAG}
WIRE = Kind(
    "a wire type such as bf16 or int8(block = 128)", words=tuple(WIRE_TYPES),
    calls={name: _BLOCKS for name in WIRE_TYPES}, code="P502",
)  # fmt: skip
OVERLAP = Kind(
    "`none` or async(...)", words=("none", "async"),
    calls={"async": {"depth": COUNT, "batches": COUNT, "chunks": COUNT, "bucket": BYTES}},
)  # fmt: skip
RECOMPUTE = Kind("true, false, full or selective", ("bool",), ("full", "selective"))


def _words(*words: str, text: str = "") -> Kind:
    return Kind(text or "one of " + ", ".join(words), words=words)


_MESH: dict[str, Kind] = {"budget": BYTES}
# Statement, block or rule -> its settings.
SETTINGS: dict[str, dict[str, Kind]] = {
    "cluster": {"network": RATE, "latency": SECONDS},
    "devices": {
        "per_node": COUNT, "memory": BYTES, "link": RATE, "latency": SECONDS, "flops": NUMBER,
        "bandwidth": RATE,
    },
    "model": {
        **{name: COUNT for name in SIZED_DIMS},
        "top_k": COUNT, "groups": COUNT, "group_top_k": COUNT, "expert_ffn": COUNT,
        "shared_experts": NATURAL, "window": COUNT, "batch": COUNT, "seq_len": COUNT,
        "mode": _words("infer", "train"), "phase": _words(*PHASE_WORDS),
        "dtype": _words("fp64", "fp32", "bf16", "fp16"),
    },
    "mesh": _MESH,
    "pool": {**_MESH, "linger": SECONDS},
    "place": {
        "route": Kind(
            "top(k, groups = n, group_top = m)", args=1,
            calls={"top": {"groups": COUNT, "group_top": COUNT}},
        ),
        "balance": Kind(
            "`static` or dynamic(every = steps)", words=("static", "dynamic"),
            calls={"dynamic": {
                "every": COUNT, "tolerance": RATIO, "policy": _words("flat", "hierarchical"),
            }},
        ),
        "recompute": RECOMPUTE,
    },
    "comm": {
        "op": _words("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"),
        "dtype": WIRE, "grad_dtype": WIRE, "overlap": OVERLAP,
        "sync": _words("event", "stream", "barrier"), "stream": _words("dedicated", "compute"),
    },
    "pipeline": {
        "schedule": Kind(
            "a schedule, or a table: one text a pipeline rank", words=SCHEDULES, table=True,
            code="P504",
        ),
        "microbatches": COUNT,
        "virtual": COUNT, "recompute": RECOMPUTE,
    },
    "split": {
        "block": BLOCK, "layout": _words("contiguous", "zigzag", "striped", "grouped"),
        "assign": _words("round_robin", "least_loaded"),
        "exchange": _words("gather", "rotate"), "spare": NATURAL, "prefetch": NATURAL,
        "free": _words("after_forward", "after_backward", "never"),
    },
    "replicate": {},
    "combine": {"tree": Kind("a list of levels: [node, pod]", words=("node", "pod"), each=True)},
    "share": {},
}  # fmt: skip
# Options of `split` that only some dims have; the others are for every dim.
OPTION_DIMS: dict[str, tuple[str, ...]] = {
    "layout": ("seq", "q_seq", "kv_seq", "tokens", "experts"),
    "exchange": ("seq", "q_seq", "kv_seq"),
    "assign": ("batch", "tokens"),
    "spare": ("experts",),
    "prefetch": ("params", "grads", "optim"),
    "free": ("params", "grads", "optim"),
}
