"""What one device generates with an artifact's model and weights: the captured graph, no cache."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from plancc.ir.interpret import run_graph
from plancc.models import ModelError, load_model
from plancc.passes.capture import capture
from plancc.runtime.artifact import Artifact
from plancc.runtime.loading import open_weights


def whole_params(artifact: Artifact, source: Any = None) -> dict[str, Tensor]:
    """Every parameter of an artifact, whole, by each of its names."""
    source = source if source is not None else open_weights(artifact)
    out = {}
    for row in artifact.manifest["params"].values():
        if row["kind"] == "param":
            tensor = source.read(row["fqns"][0], tuple(((0, n),) for n in row["shape"]))
            out.update(dict.fromkeys(row["fqns"], tensor))
    return out


def greedy_tokens(
    artifact: Artifact, spec: str | None, model_args: Mapping[str, str], ids: Tensor, count: int
) -> list[list[int]]:
    """`count` greedy tokens after `ids` [B, T], every step over the whole sequence."""
    if spec is None:
        raise ModelError(
            "the artifact was compiled from a live module: give --model to check against"
        )
    args = dict(model_args) or dict(artifact.manifest["model"]["args"])
    graph = capture(load_model(spec, args).module)
    params = whole_params(artifact)
    name = graph.inputs[0].name
    start = ids.shape[1]
    with torch.no_grad():
        for _ in range(count):
            logits = next(iter(run_graph(graph, params, {name: ids}).values()))
            ids = torch.cat([ids, logits[:, -1:].argmax(-1)], 1)
    found: list[list[int]] = ids[:, start:].tolist()
    return found
