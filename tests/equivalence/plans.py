"""Plans of the acceptance matrix as text, with the module names of each family of models."""

from __future__ import annotations

from collections.abc import Mapping
from string import Template

HEAD = "plan inline, edition 1\n"
LLAMA = dict(
    layers="layers.*", attn="layers.*.self_attn", mlp="layers.*.mlp", embed="embed_tokens",
    norm="norm", head="lm_head", first="layers.0", second="layers.1", out="self_attn.o_proj",
)  # fmt: skip
GPT2 = dict(
    layers="h.*", attn="h.*.attn", mlp="h.*.mlp", embed="wte, wpe", norm="ln_f", head="lm_head",
    first="h.0", second="h.1", out="attn.c_proj",
)  # fmt: skip
NAMES: Mapping[str, Mapping[str, str]] = {
    "dense": LLAMA, "moe": {**LLAMA, "mlp": "layers.*.moe"}, "llama": LLAMA, "qwen3": LLAMA,
    "mixtral": LLAMA, "qwen3_moe": LLAMA, "gpt2": GPT2, "phi": {**LLAMA, "norm": "final_layernorm"},
}  # fmt: skip

TENSOR = """
place $attn { split heads over tp (block = balanced) }
place $mlp { split ffn over tp (block = balanced) }
"""
VOCAB = "place $embed, $head { split vocab over tp (block = balanced) }\n"


def grid(*axes: tuple[str, int], name: str = "base", first: int = 0) -> str:
    """A mesh on the local cluster, from device `first` on."""
    total = 1
    for _, size in axes:
        total *= size
    text = ", ".join(f"{axis} = {size}" for axis, size in axes)
    return f"mesh {name}[{text}] on local[{first}:{first + total}]\n"


def stages(names: Mapping[str, str], pp: int, microbatches: int = 1) -> str:
    """Layers over pp, ends on the ends."""
    tail = f'pipeline over base.pp {{ schedule = "GPipe"; microbatches = {microbatches} }}\n'
    return (
        f"place {names['layers']} {{ split layers over pp }}\n"
        f"place {names['embed']} on base[pp = 0]\n"
        f"place {names['norm']}, {names['head']} on base[pp = -1]\n"
    ) + (tail if microbatches > 1 else "")


def tp(size: int) -> str:
    return HEAD + grid(("tp", size)) + "place ** on base\n" + VOCAB + TENSOR


def dp_tp(dp: int, size: int) -> str:
    axes = grid(("dp", dp), ("tp", size))
    return HEAD + axes + "place ** on base { split batch over dp }\n" + VOCAB + TENSOR


def sequence(size: int) -> str:
    rule = "place $layers, $norm { split seq over tp }\n"
    return HEAD + grid(("tp", size)) + "place ** on base\n" + rule + VOCAB + TENSOR


def three(names: Mapping[str, str], dp: int, pp: int, size: int, microbatches: int) -> str:
    axes = grid(("dp", dp), ("pp", pp), ("tp", size))
    every = "place ** on base { split batch over dp (block = balanced) }\n"
    return HEAD + axes + every + stages(names, pp, microbatches) + VOCAB + TENSOR


def chain(first: int, second: int) -> str:
    return (
        HEAD + grid(("tp", first), name="front") + grid(("tp", second), name="back", first=first)
        + "place ** on front\nplace $second, $norm, $head on back\n" + VOCAB + TENSOR
        + "pipeline front -> back { microbatches = 2 }\n"
    )  # fmt: skip


def experts(size: int, name: str) -> str:
    return (
        HEAD + grid(("tp", size), name="attn") + grid(("ep", size), name="sparse")
        + "place ** on attn\n" + VOCAB + "place $attn { split heads over tp }\n"
        + f"place layers.*.{name}.experts on sparse "
        + "{ split experts over ep (block = balanced) }\n"
    )  # fmt: skip


def written(text: str, model: str) -> str:
    """`text` with the module names of a model."""
    return Template(text).substitute(NAMES[model])


def matrix() -> dict[str, tuple[str, str, tuple[tuple[str, int], ...]]]:
    """Case name -> (plan, model, sizes of the model)."""
    plans: dict[str, tuple[str, list[str]]] = {
        "tp2": (tp(2), ["dense", "moe", "llama", "qwen3", "gpt2", "mixtral", "qwen3_moe", "phi"]),
        "tp3": (tp(3), ["dense", "moe", "llama", "qwen3", "gpt2", "mixtral", "qwen3_moe"]),
        "tp6": (tp(6), ["llama", "gpt2", "qwen3_moe"]),
        "dp_tp": (dp_tp(2, 2), ["dense", "moe", "llama", "qwen3", "gpt2", "mixtral", "qwen3_moe"]),
        "uneven_batch": (dp_tp(3, 1), ["dense", "mixtral"]),
        "sequence": (
            sequence(3), ["dense", "moe", "llama", "qwen3", "gpt2", "mixtral", "qwen3_moe", "phi"]
        ),
        "chain": (chain(2, 3), ["dense", "moe", "llama", "qwen3", "gpt2", "mixtral", "qwen3_moe"]),
    }  # fmt: skip
    found = {f"{p}-{m}": (t, m, ()) for p, (t, models) in plans.items() for m in models}
    for model, name in (("moe", "moe"), ("mixtral", "mlp"), ("qwen3_moe", "mlp")):
        for size in (2, 4):
            found[f"experts{size}-{model}"] = (experts(size, name), model, ())
    for model in ("dense", "moe", "llama", "qwen3", "gpt2", "mixtral", "qwen3_moe"):
        names = NAMES[model]
        found[f"pp-{model}"] = (
            HEAD + grid(("pp", 2)) + "place ** on base\n" + stages(names, 2),
            model,
            (),
        )
        found[f"dp_pp_tp-{model}"] = (three(names, 2, 2, 2, 2), model, ())
    sized = {
        "tp12_of_32_heads": (tp(12), dict(heads=32, hidden=128)),
        "tp12_of_32_heads_8_kv": (tp(12), dict(heads=24, kv_heads=6, hidden=96)),
        "tp4_of_10_heads": (tp(4), dict(heads=10, hidden=40)),
        "tp4_of_2_kv": (tp(4), dict(heads=8, kv_heads=2)),
        "tp6_of_4_kv": (tp(6), dict(heads=12, kv_heads=4, hidden=48)),
        "tp8_of_1_kv": (tp(8), dict(heads=8, kv_heads=1)),
        "tp6_sequence": (sequence(6), dict(heads=6, hidden=24)),
        "pp3_of_4_layers": (three(LLAMA, 1, 3, 2, 3), dict(layers=4)),
        "dp3_pp2_tp2": (three(LLAMA, 3, 2, 2, 2), {}),
    }
    found |= {f"{k}-dense": (t, "dense", tuple(sizes.items())) for k, (t, sizes) in sized.items()}
    return found
