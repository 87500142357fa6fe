"""The plan language: text in, `ResolvedPlan` or diagnostics out. Never imports torch."""

from plancc.dsl.codes import CODES, code_page
from plancc.dsl.diagnostics import Diagnostic, Label, Report, did_you_mean
from plancc.dsl.errors import Bug, PlanError
from plancc.dsl.pattern import Pattern, PatternError, suggest
from plancc.dsl.plan import ResolvedPlan
from plancc.dsl.render import render_github, render_json, render_text
from plancc.dsl.resolve import load_plan
from plancc.dsl.source import Source, Span

__all__ = [
    "CODES",
    "Bug",
    "Diagnostic",
    "Label",
    "Pattern",
    "PatternError",
    "PlanError",
    "Report",
    "ResolvedPlan",
    "Source",
    "Span",
    "code_page",
    "did_you_mean",
    "load_plan",
    "render_github",
    "render_json",
    "render_text",
    "suggest",
]

if __name__ == "dsl":
    raise ImportError("import plancc.dsl, not dsl")
