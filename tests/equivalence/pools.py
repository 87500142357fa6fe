"""What the tests of attention pools share.

A plan from its choices, a tiny grouped Llama, runs that are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from lowered import Lowered, captured, dense
from model_zoo import build_causal
from torch import Tensor

from plancc.ir.graph import Graph
from plancc.passes.capture import capture
from plancc.runtime.generate import Generated, generate
from plancc.runtime.loading import Loaded
from plancc.runtime.local import run_local
from plancc.runtime.runner import Runner
from plancc.verification.reference import buffers_of, random_params

LLAMA = dict(
    hidden_size=32, num_attention_heads=8, num_key_value_heads=4, num_hidden_layers=2,
    vocab_size=60, intermediate_size=48, max_position_embeddings=160, bos_token_id=1,
    eos_token_id=2, pad_token_id=0,
)  # fmt: skip


@cache
def pool_model(name: str, **sizes: int) -> Graph:
    """The dense model with room for 160 positions, a grouped Llama, or a model of the zoo."""
    if name == "dense":
        return capture(dense(**{"max_len": 160, **sizes}))
    if name == "llama8":
        return capture(build_causal("Llama", {**LLAMA, **sizes})())
    return captured(name)


@dataclass(frozen=True)
class PoolPlan:
    """The choices of a plan with a base and one pool; `steps` are (size, guard) of the axis sp."""

    base: int = 2
    devices: int = 4
    per_node: int = 2
    steps: tuple[tuple[str, str], ...] = (("2", "seq_len > 6"), ("4", "seq_len > 12"))
    axes: str = "sp = 0..4"
    jobs: tuple[str, ...] = ("split kv_seq over sp (block = ceil(seq_len / sp))",)
    combine: str = "combine out by logsumexp over sp (tree = [node, pod])"
    share: str = ""
    comm: str = ""
    guard: str = "seq_len > 6"
    inputs: Mapping[str, str] = field(
        default_factory=lambda: {"batch": "1..64", "seq_len": "1..256"}
    )
    budgets: tuple[str, str] = ("", "")
    attn: str = "layers.*.self_attn"
    others: str = (
        "place layers.*.mlp { split ffn over tp }\n"
        "place embed_tokens, lm_head { split vocab over tp }"
    )

    def text(self) -> str:
        """The plan."""
        total = self.base + self.devices
        ranges = "; ".join(f"{name} in {box}" for name, box in self.inputs.items())
        sizes = "\n".join(f"  {size} when {guard}" for size, guard in self.sizes())
        budgets = [f"budget = {b}" if b else "" for b in self.budgets]
        rules = "\n".join(f"    {rule}" for rule in (*self.jobs, self.share, self.combine) if rule)
        return f"""plan pooled, edition 1
cluster pod {{ devices gpu[{total}] {{ per_node = {self.per_node}; memory = 80GB }} }}
model any {{ {ranges} }}
mesh base[tp = {self.base}] on gpu[0:{self.base}] {{ {budgets[0]} }}
pool fa[{self.axes}] on gpu[{self.base}:{total}] {{
  {budgets[1]}
{sizes}
}}
place ** on base
place {self.attn} {{ split heads over tp }}
{self.others}
when {self.guard} {{
  place op attention in {self.attn} on fa {{
{rules}
  }}
  {self.comm}
}}
"""

    def sizes(self) -> list[tuple[str, str]]:
        """The guarded sizes as settings of their axes."""
        return [(s if "=" in s else f"sp = {s}", guard) for s, guard in self.steps]


ASYNC = "comm base <-> fa {{ overlap = async({options}); sync = event }}"


def overlap(**options: int) -> str:
    """A comm line between base and pool."""
    return ASYNC.format(options=", ".join(f"{k} = {v}" for k, v in options.items()))


@dataclass(frozen=True)
class Counted:
    """What one rank generated, how many cache slots moved, and what was noted of each step."""

    generated: Generated
    moved: int
    sent: tuple[Any, ...]


def counted_runs(
    lowered: Lowered, requests: Sequence[tuple[Tensor, int]], *, dtype: torch.dtype = torch.float64,
    counting: Callable[[Any], Any] | None = None,
) -> list[list[Counted]]:  # fmt: skip
    """Per rank, what it did in each request in turn (the runner stays).

    Tokens, moves, bytes by step.
    """
    graph = lowered.compiled.graph
    source = Loaded(random_params(graph, dtype), buffers_of(graph, dtype))

    def one(transport: Any) -> list[Counted]:
        counts = (counting or Counting)(transport)
        runner = Runner(lowered.artifact, counts, source, dtype=dtype)
        found = []
        for ids, count in requests:
            before = runner.moved
            out = generate(runner, ids, count, lambda token: counts.turn())
            found.append(Counted(out, runner.moved - before, tuple(counts.taken())))
        return found

    return run_local(lowered.artifact.world, one)


class Watched:
    """A transport whose calls are noted, one record a step."""

    record: Callable[[], Any] = dict

    def __init__(self, inner: Any) -> None:
        self.__dict__["inner"] = inner
        self.__dict__["steps"] = [self.record()]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.inner, name, value)

    def turn(self) -> None:
        """A step has ended."""
        self.steps.append(self.record())

    def taken(self) -> list[Any]:
        """The records of the steps so far, which are then forgotten."""
        found = self.steps[:-1]
        self.__dict__["steps"] = [self.record()]
        return found


class Counting(Watched):
    """Notes the bytes to each other rank, by verb."""

    def note(self, verb: str, rank: int, count: int) -> None:
        """Count bytes that leave for another rank."""
        if rank != self.inner.rank and count:
            step = self.steps[-1]
            step[verb, rank] = step.get((verb, rank), 0) + count

    def exchange(self, sends: Any, recvs: Any, at: int, channel: int = 0) -> Any:
        """Noted by target."""
        for rank, tensor in sends:
            self.note("exchange", rank, tensor.nbytes)
        return self.inner.exchange(sends, recvs, at, channel)

    def all_to_all(self, parts: Any, group: Any, shapes: Any, at: int) -> Any:
        """Noted by target."""
        for rank, tensor in zip(group, parts, strict=True):
            self.note("all_to_all", rank, tensor.nbytes)
        return self.inner.all_to_all(parts, group, shapes, at)
