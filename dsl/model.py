"""The model block: facts, ranges of the inputs, dims that the plan names itself."""

from __future__ import annotations

from typing import Any

from plancc.dsl import values as v
from plancc.dsl.diagnostics import did_you_mean
from plancc.dsl.expressions import describe, evaluate
from plancc.dsl.pattern import Pattern, PatternError
from plancc.dsl.plan import DimRule
from plancc.dsl.scope import POISON, Entry, Env, World
from plancc.dsl.settings import find_kind, setting_value
from plancc.dsl.tree import Dynamic
from plancc.dsl.vocabulary import DIMS, INPUTS, SETTINGS


def declare_facts(world: World) -> None:
    """Make the facts of the model block known by name; values are found on demand."""
    if world.model is None:
        return
    block, scope = world.model
    env = Env(world, scope)
    for attr in block.attrs:
        name = attr.name.text
        if attr.guard is not None:
            world.report.error("P401", f"`{name}` cannot depend on a guard", attr.guard.span)
        elif find_kind(attr, SETTINGS["model"], "model", env) is None:
            continue
        elif name in world.facts:
            world.report.error(
                "P102", f"`{name}` is set twice", attr.name.span,
                labels=[(world.facts[name].name.span, "first set here")],
            )  # fmt: skip
        elif name not in INPUTS:
            world.facts[name] = Entry("fact", attr.name, attr, scope, fact_value)


def fact_value(entry: Entry, env: Env) -> Any:
    """The value of one fact."""
    name = entry.name.text
    return setting_value(entry.node.value, SETTINGS["model"][name], name, env)


def resolve_inputs(world: World) -> None:
    """The ranges of the inputs: `seq_len in 1..4096`, or fixed by `seq_len = 4096`."""
    if world.model is None:
        return
    block, scope = world.model
    env = Env(world, scope)
    for attr in block.attrs:
        name = attr.name.text
        if name in INPUTS and attr.guard is None:
            value = setting_value(attr.value, SETTINGS["model"].get(name, _COUNT), name, env)
            if value is not POISON:
                world.inputs[name] = (value, value)
    for dynamic in block.dynamics:
        _declare_range(dynamic, env)


_COUNT = SETTINGS["model"]["batch"]


def _declare_range(dynamic: Dynamic, env: Env) -> None:
    name, report = dynamic.name.text, env.world.report
    if name not in INPUTS:
        near = did_you_mean(name, INPUTS)
        report.error(
            "P101", f"cannot find input `{name}`", dynamic.name.span, fix=near,
            help=f"did you mean `{near}`?" if near else f"inputs: {', '.join(INPUTS)}",
        )  # fmt: skip
        return
    if name in env.world.inputs:
        report.error("P102", f"`{name}` is set twice", dynamic.name.span)
        return
    value = evaluate(dynamic.bounds, env)
    if not isinstance(value, v.Range):
        return
    if value.step != 1 or value.lo < 1:
        report.error(
            "P110", f"`{name}` cannot run over {describe(value)}", dynamic.bounds.span,
            label="expected a range from 1 on, without a step",
        )  # fmt: skip
        return
    env.world.inputs[name] = (value.lo, value.hi)


def resolve_dims(world: World) -> tuple[DimRule, ...]:
    """The dims that the model block names: `dim inner = layers.*.mixer.in_proj.weight[0]`."""
    if world.model is None:
        return ()
    rules: list[DimRule] = []
    for node in world.model[0].dims:
        text, _, index = node.pattern.text.rpartition("[")
        number = index.rstrip("]")
        if not text or not number.lstrip("-").isdecimal():
            world.report.error(
                "P110", "a dim is named by a parameter and an index", node.pattern.span,
                help="write it so: dim inner = layers.*.mixer.in_proj.weight[0]",
            )  # fmt: skip
            continue
        try:
            Pattern.parse(text)
        except PatternError as error:
            world.report.error("P110", str(error), node.pattern.span)
            continue
        name = node.name.text
        if DIMS.get(name, "flow") != "flow":
            world.report.error("P102", f"`{name}` is no dim of a tensor", node.name.span)
            continue
        rules.append(DimRule(name, text, int(number[:4]), node.span))
        world.dims.setdefault(name, node.name.span)
    return tuple(rules)
