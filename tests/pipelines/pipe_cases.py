"""Plans with pipelines as text, and what the tests of this folder ask of them."""

from __future__ import annotations

from lowered import Lowered, captured, lower

HEAD = "plan inline, edition 1\n"
STAGES = "place layers.* { split layers over pp }\n"
ENDS = "place embed_tokens on base[pp = 0]\nplace norm, lm_head on base[pp = -1]\n"
TENSOR = """place layers.*.self_attn { split heads over tp }
place layers.*.mlp { split ffn over tp }
place embed_tokens, lm_head { split vocab over tp }
"""
SMALL = (("ffn", 24), ("heads", 4), ("hidden", 16))


def schedule(name: str, batches: int, virtual: int = 1) -> str:
    """The line of a pipeline over base.pp."""
    return (
        f'pipeline over base.pp {{ schedule = "{name}"; virtual = {virtual}; '
        f"microbatches = {batches} }}\n"
    )


def table(*rows: str, virtual: int = 1) -> str:
    """The line of a pipeline whose schedule is written down."""
    texts = ", ".join(f'"{row}"' for row in rows)
    return f"pipeline over base.pp {{ schedule = [{texts}]; virtual = {virtual} }}\n"


def plain(pp: int, line: str, ends: str = ENDS, batch: int | None = None) -> str:
    """Layers over pp and nothing else."""
    model = f"model m {{ batch = {batch} }}\n" if batch else ""
    return f"{HEAD}{model}mesh base[pp = {pp}] on local\nplace ** on base\n{STAGES}{ends}{line}"


def three(dp: int, pp: int, tp: int, line: str, sequence: bool = False) -> str:
    """Batch, layers and the insides of layers, each over its own axis."""
    split = "place layers.*, norm { split seq over tp }\n" if sequence else ""
    return (
        f"{HEAD}mesh base[dp = {dp}, pp = {pp}, tp = {tp}] on local\n"
        "place ** on base { split batch over dp (block = balanced) }\n"
        f"{STAGES}{ENDS}{split}{TENSOR}{line}"
    )


def beside(
    line: str, pp: int = 2, rule: str = "split heads over hp", first: int | None = None
) -> str:
    """Attention of all layers on a mesh that is not part of the pipeline."""
    at = pp if first is None else first
    return (
        f"{HEAD}mesh base[pp = {pp}] on local[0:{pp}]\nmesh far[hp = 2] on local[{at}:{at + 2}]\n"
        f"place ** on base\n{STAGES}{ENDS}"
        f"place op attention in layers.*.self_attn on far {{ {rule} }}\n{line}"
    )


def trained(text: str, layers: int = 4, model: str = "dense") -> Lowered:
    """The training programs of a small model under a plan."""
    sizes: tuple[tuple[str, int], ...] = (("layers", layers),) if model == "moe" else ()
    sizes = (*SMALL, ("layers", layers)) if model == "dense" else sizes
    return lower(text, captured(model, sizes), phases=("train",))
