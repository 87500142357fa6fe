"""The kinds of spans: how each is called, abbreviated and coloured, and which kernel of a trace it is."""

from __future__ import annotations

from dataclasses import dataclass

from plancc.dsl.errors import Bug

COMPUTE, COMMUNICATION, WAIT = "compute", "communication", "wait"
"""Families of kinds, in the order in which they hide each other: what computes does not wait."""
IDLE = "idle"
"""Time of which a timeline says nothing."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of span. `code` stands for it where there is little room, `kernel` in traces of devices.

    `light` and `dark` are its colours on such pages. They differ in lightness as well as in hue, and
    families differ in pattern and code too: nothing depends on colours alone.
    """

    name: str
    family: str
    label: str
    code: str
    light: str
    dark: str
    kernel: str = ""


KINDS = {
    kind.name: kind
    for kind in (
        Kind("matmul", COMPUTE, "matrix product", "MM", "#2f6fde", "#5b93f5"),
        Kind("attention", COMPUTE, "attention", "AT", "#0b8f86", "#2bb8ad"),
        Kind("memory", COMPUTE, "memory-bound", "ME", "#9aa9bf", "#7688a3"),
        Kind("compute", COMPUTE, "computation", "CO", "#5b82c4", "#7d9fda"),
        Kind("all_reduce", COMMUNICATION, "all-reduce", "AR", "#d9560f", "#f0783a", "AllReduce_Sum"),
        Kind("all_gather", COMMUNICATION, "all-gather", "AG", "#eda515", "#f7c14f", "AllGather"),
        Kind("reduce_scatter", COMMUNICATION, "reduce-scatter", "RS", "#a3195b", "#d64f8c",
             "ReduceScatter_Sum"),
        Kind("all_to_all", COMMUNICATION, "all-to-all", "AA", "#8e44c9", "#b57ae8", "SendRecv"),
        Kind("exchange", COMMUNICATION, "exchange", "EX", "#e8719a", "#f592b4", "SendRecv"),
        Kind("message", COMMUNICATION, "message", "MS", "#8a5a3c", "#c08a63", "SendRecv"),
        Kind("barrier", COMMUNICATION, "barrier", "BA", "#6b7280", "#9ca3af", "AllReduce_Sum"),
        Kind("wait", WAIT, "waiting for another rank", "", "#c9ced6", "#3c4350"),
    )
}  # fmt: skip
UNSEEN = Kind(IDLE, IDLE, "idle", "", "#eef0f3", "#20242c")


def kind_of(name: str) -> Kind:
    """The kind of that name, the idle one among them. Bug if there is none."""
    found = UNSEEN if name == IDLE else KINDS.get(name)
    if found is None:
        raise Bug(f"no span is of kind {name!r}")
    return found


def kernel_name(kind: str, name: str) -> str:
    """What a trace calls a span: names of NCCL's kernels tell readers what communication is."""
    kernel = kind_of(kind).kernel
    return f"ncclDevKernel_{kernel}" if kernel else name
