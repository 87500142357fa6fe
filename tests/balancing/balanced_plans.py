"""Plans whose experts a table places, and small models for them."""

from __future__ import annotations

from functools import cache

from lowered import Lowered, captured, lower

MOE = (("experts", 8), ("ffn", 8), ("heads", 4), ("kv_heads", 2), ("layers", 2))


def plan(
    balance: str = "", spare: int = 0, ep: int = 4, rep: int = 2, tp: int = 1, zero: bool = False,
    mode: str = "infer",
) -> str:  # fmt: skip
    """Attention on `rep` x 2 ranks, experts on `ep` (x `tp`, which cuts each) others."""
    first = 2 * rep
    cut = f" split {'optim' if zero else 'ffn'} over tp;" if tp > 1 else ""
    return (
        f"plan balanced, edition 1\nmodel m {{ mode = {mode} }}\n"
        f"mesh attn[rep = {rep}, hp = 2] on local[0:{first}]\n"
        f"mesh moe[ep = {ep}{f', tp = {tp}' if tp > 1 else ''}] "
        f"on local[{first}:{first + ep * tp}]\n"
        "place ** on attn\nplace layers.* { split batch over rep }\n"
        "place layers.*.self_attn { split heads over hp }\n"
        "place layers.*.moe.experts on moe { "
        f"split experts over ep (spare = {spare});{cut} route = top(2); {balance} }}\n"
    )


@cache
def compiled(balance: str, spare: int = 0, **sizes: int) -> Lowered:
    """The small mixture of experts for inference under `plan`."""
    return lower(plan(balance, spare, **sizes), captured("moe", MOE))
