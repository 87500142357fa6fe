"""`plancc explain PLAN --model M`: who lives where, and what that costs; `plancc explain CODE`: its page."""

from __future__ import annotations

import argparse
import re
import sys

from plancc.cli.options import (
    add_json,
    add_plan_options,
    add_purpose,
    complain,
    print_json,
    user_errors,
)
from plancc.dsl import CODES, code_page, load_plan, render_text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of the command."""
    parser.add_argument("plan", metavar="PLAN|CODE")
    add_plan_options(parser, model_required=False)
    add_purpose(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Explain a plan, or a code."""
    if re.fullmatch(r"[Pp]\d{3}", args.plan):
        return explain_code(args.plan.upper())
    plan, report = load_plan(args.plan, dict(args.sets))
    sys.stderr.write(render_text(report.diagnostics, sys.stderr.isatty()))
    if plan is None:
        return 1
    if not args.model:
        show_plan(plan, args.json)
        return 0
    from plancc.api import wanted_phases
    from plancc.compiler import compile_graph
    from plancc.explain import explain, explain_text, schedule_text
    from plancc.models import load_model
    from plancc.passes.capture import capture

    try:
        module = load_model(args.model, dict(args.model_args)).module
        phases = wanted_phases(plan, args.purpose)
        facts = explain(compile_graph(plan, capture(module), report, phases=phases))
    except user_errors() as problem:
        return complain(str(problem))
    print_json(facts) if args.json else print(explain_text(facts, schedule_text(plan)))
    return 0


def explain_code(code: str) -> int:
    """Print the page of a diagnostic code."""
    if code not in CODES:
        return complain(f"no diagnostic has the code {code}")
    print(code_page(code))
    return 0


def show_plan(plan: object, as_json: bool) -> None:
    """What a plan says without a model: meshes, variants, places, its pipeline's schedule."""
    from plancc.codegen.manifest import plan_json
    from plancc.explain import schedule_facts, schedule_text

    facts = plan_json(plan)  # type: ignore[arg-type]
    if as_json:
        print_json({**facts, "schedule": schedule_facts(plan)})  # type: ignore[arg-type]
        return
    print(f"{facts['name']} (give --model to see who lives where, traffic and memory)")
    for name, mesh in facts["meshes"].items():
        axes = ", ".join(f"{a} {n}" for a, n in mesh["axes"])
        print(f"  mesh {name}[{axes}] on {len(mesh['devices'])} devices")
    for variant in plan.variants:  # type: ignore[attr-defined]
        print(f"  variant {variant.index}: {variant.text}")
    for place in facts["places"]:
        targets = ", ".join(
            f"op {t['pattern']}" + (f" in {t['within']}" if t["within"] else "")
            if t["kind"] == "op" else t["pattern"]
            for t in place["targets"]
        )  # fmt: skip
        rules = "; ".join(
            f"{r['verb']} {', '.join(r['dims'])} over {', '.join(r['axes'])}"
            for r in place["rules"]
        )
        inside = ", ".join(f"{a} = {i}" for a, i in place["coords"].items())
        on = f" on {place['on']}" + (f"[{inside}]" if inside else "") if place["on"] else ""
        print(f"  {place['line']:<24} {targets}{on}" + (f" {{ {rules} }}" if rules else ""))
    drawing = schedule_text(plan)  # type: ignore[arg-type]
    if drawing:
        print(drawing)
