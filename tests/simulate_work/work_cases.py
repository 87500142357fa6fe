"""Plans and models whose work is counted, and the counters: predicted by programs, counted by torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from math import prod
from typing import Any

import torch
from lowered import captured, plan_file
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from plancc.compiler import Compiled, compile_graph
from plancc.dsl import load_plan
from plancc.ir.program import RankProgram
from plancc.simulator.forms import Work
from plancc.simulator.place import Place, Sizes, owned_parts
from plancc.simulator.routing import EVEN, Routing
from plancc.simulator.work import ProgramWork

ONE = "mesh base[dp = 1] on local\nplace ** on base\n"
TENSOR = """mesh base[tp = {tp}] on local
place ** on base
place embed_tokens, lm_head {{ split vocab over tp }}
place layers.*.self_attn {{ split heads over tp (block = balanced) }}
place layers.*.mlp {{ split ffn over tp (block = balanced) }}
"""
Pick = Callable[[Work], int]


@cache
def compiled(
    text: str, model: str = "dense", sizes: tuple[tuple[str, int], ...] = (), phase: str = "forward"
) -> Compiled:
    """A small model under a plan, for one phase; models are those of `lowered.captured`."""
    resolved, report = load_plan(plan_file(f"plan inline, edition 1\n{text}"), {})
    assert resolved is not None, [d.message for d in report.diagnostics]
    return compile_graph(resolved, captured(model, sizes), report, phases=(phase,))


def programs(found: Compiled) -> Iterator[RankProgram]:
    """All programs of all units."""
    for unit in found.units:
        assert unit.programs is not None
        yield from unit.programs.programs


def of_ranks(
    found: Compiled, sizes: Sizes, routing: Routing = EVEN, batches: int = 1
) -> dict[int, list[Work]]:
    """Rank -> all kernels of one step, those of W actions at the end."""
    out: dict[int, list[Work]] = {}
    for program in programs(found):
        work = ProgramWork(program, routing, batches)
        for rank in program.ranks:
            place = Place(rank, found.world.grids, sizes, owned_parts(program))
            kernels = (*work.works(place), *work.later(place).values())
            out[rank] = [one for each in kernels for one in each]
    return out


def total(found: Compiled, sizes: Sizes, pick: Pick, **options: Any) -> int:
    """The sum of something over all kernels of all ranks."""
    return sum(pick(one) for works in of_ranks(found, sizes, **options).values() for one in works)


def products(work: Work) -> int:
    """FLOPs of matrix products."""
    return work.flops if work.kind == "matmul" else 0


def squares(work: Work) -> int:
    """FLOPs of attention if nothing were hidden, of what torch's plain kernel computes forwards."""
    return 4 * prod(work.shape) if work.kind == "attention" else 0


def counted(model: nn.Module, ids: Tensor, backward: bool = False) -> Mapping[Any, int]:
    """What torch counts on one device, by operator, with attention as plain products."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        with torch.set_grad_enabled(backward):
            out = model(ids)
            logits = out if isinstance(out, Tensor) else out[0]
        if backward:
            flat = logits[:, :-1].reshape(-1, logits.shape[-1])
            nn.functional.cross_entropy(flat, ids[:, 1:].reshape(-1)).backward()
    return counter.get_flop_counts()["Global"]
