"""Artifacts for the tests of elastic runs: a small model, a base of two ranks, a small pool."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

import plancc.api as api
from plancc.ir.interpret import run_graph
from plancc.models import load_model
from plancc.passes.capture import capture
from plancc.runtime.artifact import load_artifact
from plancc.verification.one_device import whole_params

ROOT = Path(__file__).parents[2]
MODEL = f"{ROOT}/examples/models.py:dense"
ARGS = {
    "layers": "2", "hidden": "32", "heads": "4", "kv_heads": "2", "ffn": "64", "vocab": "96"
}  # fmt: skip
PLAN = """
plan small_pool, edition 1

param long = 8 in 4..64
cluster pod {{
  devices a100[{devices}] {{ per_node = 8; memory = 80GB; link = 300GB/s }}
  network = 25GB/s
}}
model dense {{
  batch in 1..8
  seq_len in 1..96
}}
mesh base[tp = {tp}] on a100[0:{tp}]
pool fa[sp = 0..{most} step 1] on a100[{tp}:{devices}] {{
  {steps}
  linger = 20s
}}
place ** on base
place layers.*.self_attn    {{ split heads over tp }}
place layers.*.mlp          {{ split ffn over tp }}
place embed_tokens, lm_head {{ split vocab over tp }}
when seq_len > long {{
  place op attention in layers.*.self_attn on fa {{
    split kv_seq over sp (block = ceil(seq_len / sp))
    combine out by logsumexp over sp
  }}
}}
"""


def compile_pool(folder, tp=2, sizes=(2, 4)):
    """Compile the plan with a pool that takes these sizes above 8, 16, 32 tokens."""
    steps = "\n  ".join(
        f"sp = {size} when seq_len > {2**double} * long" for double, size in enumerate(sizes)
    )
    text = PLAN.format(tp=tp, devices=tp + max(sizes), most=max(sizes), steps=steps)
    plan = folder / "pool.plan"
    plan.write_text(text.replace("> 1 * long", "> long"))
    api.compile(str(plan), MODEL, folder / "artifact", model_args=ARGS, verify=False)
    return load_artifact(folder / "artifact")


def prompts(*lengths):
    """Random prompts of these lengths."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(96, (n,), generator=generator).tolist() for n in lengths]


@cache
def captured():
    """The model as one graph."""
    return capture(load_model(MODEL, ARGS).module)


def one_device(artifact, ids, count):
    """What one device generates after `ids`."""
    graph, params = captured(), whole_params(artifact)
    sequence = list(ids)
    with torch.no_grad():
        for _ in range(count):
            given = {graph.inputs[0].name: torch.tensor([sequence])}
            logits = next(iter(run_graph(graph, params, given).values()))
            sequence.append(int(logits[0, -1].argmax()))
    return sequence[len(ids) :]
