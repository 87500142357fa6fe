"""Canonical Hugging Face models: attention, masks and experts through transformers' own registries.

While inside `canonical`, each attention of a model that uses the registries is one
plancc::attention (causal, window, softcap, sinks told apart), each expert layer one
plancc::experts. Configs are restored.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from plancc.models import ModelError
from plancc.ops.experts import ACTIVATIONS, activate

NAME = "plancc"


@dataclass(frozen=True, slots=True)
class Pattern:
    """What a mask made by transformers means: causal or not, a window (0: none), padding."""

    causal: bool
    window: int
    padding: Tensor | None


_MASKS: list[tuple[Tensor, Pattern]] = []


def is_hugging_face(model: nn.Module) -> bool:
    """Tell whether a module is or contains a transformers model, without importing transformers."""
    modeling = sys.modules.get("transformers.modeling_utils")
    return modeling is not None and any(
        isinstance(part, modeling.PreTrainedModel) for part in model.modules()
    )


@contextmanager
def canonical(model: nn.Module) -> Iterator[None]:
    """Route the registries of every config in `model` to plancc while inside."""
    if not is_hugging_face(model):
        yield
        return
    check_version()
    register()
    saved: list[tuple[Any, str, Any]] = []

    def switch(config: Any, name: str, value: Any) -> None:
        saved.append((config, name, config.__dict__.get(name, saved)))
        config.__dict__[name] = value

    try:
        for config, attention, experts in configs(model):
            if attention:
                switch(config, "_attn_implementation_internal", NAME)
            if experts:
                switch(config, "_experts_implementation_internal", NAME)
            switch(config, "use_cache", False)
            switch(config, "return_dict", True)
        stop_packing(saved)
        yield
    finally:
        for config, name, old in reversed(saved):
            if old is saved:
                del config.__dict__[name]
            else:
                config.__dict__[name] = old
        _MASKS.clear()


def collects(model: nn.Module) -> bool:
    """Tell whether a transformers model gathers outputs of its layers behind their backs."""
    wishes = ("output_hidden_states", "output_attentions", "output_router_logits")
    held = [getattr(part, "config", None) for part in model.modules()]
    return any(getattr(config, wish, False) is True for config in held for wish in wishes)


def check_version() -> None:
    """Refuse a transformers that has not all the registries."""
    import transformers

    if int(transformers.__version__.split(".")[0]) < 5:
        raise ModelError(f"transformers 5 or newer is needed, this is {transformers.__version__}")


def stop_packing(saved: list[tuple[Any, str, Any]]) -> None:
    """Tell transformers that no sequences are packed: it would look at values that no trace has."""
    from transformers import masking_utils

    name = "find_packed_sequence_indices"
    saved.append((masking_utils, name, masking_utils.__dict__.get(name, saved)))
    masking_utils.__dict__[name] = lambda position_ids: None


def configs(model: nn.Module) -> Iterator[tuple[Any, bool, bool]]:
    """Give each config once, with whether its model takes attention and experts from a registry."""
    from transformers.modeling_utils import PreTrainedModel

    found: dict[int, tuple[Any, bool, bool]] = {}
    owner = (False, False)
    for part in model.modules():
        config = getattr(part, "config", None)
        if isinstance(part, PreTrainedModel):
            owner = (part._can_set_attn_implementation(), part._can_set_experts_implementation())
        if hasattr(config, "_attn_implementation_internal"):
            _, attention, experts = found.get(id(config), (config, False, False))
            found[id(config)] = (config, attention or owner[0], experts or owner[1])
    yield from found.values()


def register() -> None:
    """Register plancc's functions in transformers; they are inert until a config names them."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, make_mask)
    ALL_EXPERTS_FUNCTIONS.register(NAME, experts_forward)


def make_mask(
    *args: Any,
    mask_function: Any = None,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    **rest: Any,
) -> Tensor:
    """Build the bool mask that the model asks for, and remember what it means."""
    from transformers.masking_utils import sdpa_mask

    rest |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    rest |= {"mask_function": mask_function, "attention_mask": attention_mask}
    mask = sdpa_mask(*args, local_size=local_size, **rest)
    meaning = recognise(mask_function, local_size or 0)
    if meaning is not None:
        causal, window = meaning
        padding = None if attention_mask is None else attention_mask[:, None, None, :].bool()
        _MASKS.append((mask, Pattern(causal, window, padding)))
    return mask


def recognise(mask_function: Any, reach: int) -> tuple[bool, int] | None:
    """Return (causal, window) if the mask function is exactly that out to twice its reach."""
    from plancc.ops.attention import visible

    if holds_tensor(mask_function):
        return None
    count = 2 * reach + 9
    rows = sorted({0, 1, 5, reach, reach + 1, count // 2, count - 1})
    with _disable_current_modes():
        zero = torch.zeros(1, 1, 1, 1, dtype=torch.long)
        q, k = torch.tensor(rows)[None, None, :, None], torch.arange(count)[None, None, None]
        try:
            seen = mask_function(zero, zero, q, k).expand(1, 1, len(rows), count)[0, 0]
        except (RuntimeError, TypeError, IndexError, AttributeError):
            return None
        middle = rows.index(count // 2)
        keys = seen[middle].nonzero().flatten().tolist()
        if not keys:
            return None
        causal = keys[-1] == rows[middle]
        window = 0 if keys[0] == 0 else rows[middle] - keys[0] + 1
        exact = visible(count, count, 0, causal, window, torch.device("cpu"))[rows]
        return (causal, window) if torch.equal(seen, exact) else None


def holds_tensor(function: Any) -> bool:
    """Tell whether a function has a tensor in its closure, at any depth."""
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    flat = [item for cell in cells for item in (cell if isinstance(cell, tuple) else (cell,))]
    return any(isinstance(item, Tensor) or holds_tensor(item) for item in flat)


def means_mask(tensor: Tensor) -> bool:
    """Tell whether a tensor is a mask whose meaning is remembered."""
    return any(mask is tensor for mask, _ in _MASKS)


def same_mask(old: Tensor, new: Tensor) -> None:
    """Let `new` mean what `old` means, if that is a mask."""
    found = next((pattern for mask, pattern in _MASKS if mask is old), None)
    if found is not None:
        _MASKS.append((new, found))


def attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Emit one plancc::attention; [B, T, H, Dv] and no weights, as transformers expects."""
    meaning = next((found for mask, found in _MASKS if mask is attention_mask), None)
    if meaning is not None:
        causal, window, mask = meaning.causal, meaning.window, meaning.padding
    else:
        causal = is_causal if is_causal is not None else getattr(module, "is_causal", True)
        causal, window, mask = bool(causal) and attention_mask is None, 0, attention_mask
    if position_bias is not None:
        mask = position_bias if mask is None else join(mask, position_bias)
    out = torch.ops.plancc.attention(
        query,
        key,
        value,
        mask,
        s_aux,
        scale=float(scaling if scaling is not None else query.shape[-1] ** -0.5),
        causal=causal,
        window=window,
        softcap=float(softcap or 0.0),
    )
    return out.transpose(1, 2).contiguous(), None


def join(mask: Tensor, bias: Tensor) -> Tensor:
    """Add a bias to a mask that may be bool."""
    return bias.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else mask + bias


def experts_forward(module: nn.Module, x: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Emit one plancc::experts for a layer under transformers' ExpertsInterface."""
    if getattr(module, "has_post_expert_norm", False):
        raise ModelError(f"experts of `{type(module).__name__}` with a norm are not supported")
    gated, biased = module.has_gate, module.has_bias
    first = "gate_up_proj" if gated else "up_proj"
    return torch.ops.plancc.experts(
        x,
        index,
        weight,
        getattr(module, first),
        module.down_proj,
        getattr(module, f"{first}_bias") if biased else None,
        module.down_proj_bias if biased else None,
        transposed=module.is_transposed,
        gated=gated,
        **activation(module),
    )


def activation(module: nn.Module) -> dict[str, Any]:
    """Find the expert activation by trying the known ones on numbers; ModelError if none agrees."""
    forms: list[dict[str, Any]] = [
        {"act": name, "interleaved": False, "limit": 0.0, "alpha": 0.0} for name in ACTIVATIONS
    ]
    limit, alpha = getattr(module, "limit", 0.0), getattr(module, "alpha", 0.0)
    if limit or alpha:
        forms += [
            {"act": "silu", "interleaved": pairs, "limit": float(limit), "alpha": float(alpha)}
            for pairs in (True, False)
        ]
    with _disable_current_modes():
        probe = torch.linspace(-9.0, 9.0, 64).reshape(4, 16)
        wanted = module._apply_gate(probe) if module.has_gate else module.act_fn(probe)
        for form in forms:
            if torch.allclose(wanted, activate(probe, gated=module.has_gate, **form), atol=1e-5):
                return form
    raise ModelError(f"the activation of experts `{type(module).__name__}` is not known")
