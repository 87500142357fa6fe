"""The capture pass: choose example inputs, trace, convert, normalise."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from plancc.ir.graph import BATCH, TOKENS, Graph, Param
from plancc.models import LoadedModel, ModelError
from plancc.passes.capture.attention import recognise_attention
from plancc.passes.capture.convert import Converted, convert
from plancc.passes.capture.expand import expand
from plancc.passes.capture.experts import recognise_experts
from plancc.passes.capture.export import symbolic, trace
from plancc.passes.capture.functionalize import functionalize
from plancc.passes.capture.hugging_face import canonical, collects, is_hugging_face
from plancc.passes.capture.scatter import concatenate_scatters
from plancc.passes.capture.simplify import simplify
from plancc.passes.capture.sizes import Sizes
from plancc.passes.capture.stamp import Refused, find_groups, stamping

BATCH_EXAMPLE, TOKENS_EXAMPLE = 3, 13
TOKEN_NAMES = ("input_ids", "ids", "tokens", "idx", "x")


def capture(
    model: nn.Module | LoadedModel,
    example: Mapping[str, Tensor] | None = None,
    *,
    inputs: Collection[str] | None = None,
    frontend: str = "export",
) -> Graph:
    """Capture `model` for batch B and T tokens; raise ModelError where it cannot be.

    `example` gives example inputs by argument name (default: token ids, and an attention mask for
    encoders); `inputs` names the arguments to keep, or to add as tokens. `frontend` is
    "export" (torch.export) or "fx" (torch.fx.symbolic_trace first: plain modules only).
    """
    if isinstance(model, LoadedModel):
        model = model.module
    chosen = dict(example) if example is not None else example_inputs(model, inputs)
    if inputs is not None:
        chosen = {name: chosen[name] for name in inputs}
    names, tensors = state_names(model)
    unknown = next((name for name, buffer in tensors.items() if buffer.is_meta), None)
    if unknown is not None:
        raise ModelError(
            f"buffer `{unknown}` is on meta, so its value is not known",
            ("build the model off meta: its parameters take no memory while it is captured",),
        )
    traced = traced_layers(model, chosen, names, tensors, frontend)
    nodes, outputs = functionalize(
        traced.nodes, traced.params, traced.inputs, traced.outputs, traced.storage
    )
    values = [*traced.inputs, *(param.value for param in traced.params.values())]
    nodes = concatenate_scatters(nodes, values)
    nodes, params, outputs = simplify(nodes, traced.params, traced.inputs, outputs)
    modules = {path: type(part).__name__ for path, part in model.named_modules()}
    inputs_seen = tuple(traced.inputs)
    params = with_frozen(params, model)
    graph = Graph(tuple(nodes), params, inputs_seen, outputs, modules, limits=traced.limits)
    return name_logits(recognise_experts(recognise_attention(graph)), model)


def with_frozen(params: Mapping[str, Param], model: nn.Module) -> dict[str, Param]:
    """The parameters with a mark on those that the model does not train."""
    held = dict(model.named_parameters(remove_duplicate=False))
    still = {name for name, param in held.items() if not param.requires_grad}
    return {
        name: replace(param, frozen=param.kind == "param" and bool(still.intersection(param.fqns)))
        for name, param in params.items()
    }


def traced_layers(
    model: nn.Module,
    chosen: Mapping[str, Tensor],
    names: Mapping[str, tuple[str, ...]],
    tensors: Mapping[str, Tensor],
    frontend: str,
) -> Converted:
    """Trace and convert, identical layers once where that is safe, else every one."""
    with canonical(model):
        groups = find_groups(model) if frontend == "export" and not collects(model) else []
        if groups:
            try:
                with stamping(model, groups):
                    program = trace(model, chosen)
                return expand(convert_program(program, chosen, names, tensors), groups)
            except (Refused, ModelError):
                pass  # an ordinary trace stamps nothing, and says what is wrong with the model
        program = trace(symbolic(model) if frontend == "fx" else model, chosen)
    return convert_program(program, chosen, names, tensors)


def convert_program(
    program: ExportedProgram,
    chosen: Collection[str],
    names: Mapping[str, tuple[str, ...]],
    tensors: Mapping[str, Tensor],
) -> Converted:
    """Convert what torch.export gave, with the inputs' sizes named."""
    sizes = Sizes(program.range_constraints, {BATCH: BATCH_EXAMPLE, TOKENS: TOKENS_EXAMPLE})
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in chosen:
            sizes.bind(node.meta["val"])
    return convert(program, sizes, names, tensors)


def name_logits(graph: Graph, model: nn.Module) -> Graph:
    """Call a nameless output "logits" if it is as wide as an embedding of the model."""
    widths = {part.num_embeddings for part in model.modules() if isinstance(part, nn.Embedding)}
    values = {value.name: value for value in graph.values()}
    only = values[graph.outputs["output"]] if list(graph.outputs) == ["output"] else None
    if only is None or len(only.shape) != 3 or only.shape[-1] not in widths:
        return graph
    return replace(graph, outputs={"logits": only.name})


def example_inputs(model: nn.Module, names: Collection[str] | None) -> dict[str, Tensor]:
    """Return token ids (with a mask for encoders), or pixels, under the names of the forward."""
    arguments = inspect.signature(model.forward).parameters
    named = getattr(model, "main_input_name", None)
    first = named if named in arguments else next((n for n in TOKEN_NAMES if n in arguments), None)
    first = first or next(iter(arguments), None)
    if first is None:
        raise ModelError(f"the forward of `{type(model).__name__}` takes no argument")
    if first == "pixel_values":
        return {first: pixels(model)}
    chosen = [first]
    if is_hugging_face(model) and "attention_mask" in arguments and not is_causal(model):
        chosen.append("attention_mask")
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) is True:
        chosen.append("decoder_input_ids")
    chosen = list(dict.fromkeys((*chosen, *(names or ()))))
    wrong = next((name for name in chosen if name not in arguments), None)
    if wrong is not None:
        raise ModelError(f"the forward of `{type(model).__name__}` has no argument `{wrong}`")
    return {name: torch.ones(BATCH_EXAMPLE, TOKENS_EXAMPLE, dtype=torch.long) for name in chosen}


def is_causal(model: nn.Module) -> bool:
    """Tell whether a transformers model is a causal language model or the inside of one."""
    named = any(kind in type(model).__name__ for kind in ("ForCausalLM", "LMHeadModel"))
    return named or any(getattr(part, "is_causal", False) is True for part in model.modules())


def pixels(model: nn.Module) -> Tensor:
    """Return example images of the size that the model's config states."""
    config = getattr(model, "config", None)
    side, channels = getattr(config, "image_size", None), getattr(config, "num_channels", 3)
    if side is None:
        raise ModelError("an image model needs example inputs: its config has no image_size")
    height, width = side if isinstance(side, (tuple, list)) else (side, side)
    return torch.zeros(BATCH_EXAMPLE, channels, height, width)


def state_names(model: nn.Module) -> tuple[dict[str, tuple[str, ...]], dict[str, Tensor]]:
    """Return all names of the tensor behind each name, and the buffers by name."""
    groups: dict[int, list[str]] = {}
    for tensors in (model.named_parameters, model.named_buffers):
        for name, tensor in tensors(remove_duplicate=False):
            groups.setdefault(id(tensor), []).append(name)
    names = {name: tuple(group) for group in groups.values() for name in group}
    return names, dict(model.named_buffers(remove_duplicate=False))
