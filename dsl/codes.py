"""The registry of diagnostic codes: code -> one-line meaning. A code is never reused.

Each has a page in codes/ (printed by `plancc explain CODE`).
"""

from __future__ import annotations

from pathlib import Path

CODES: dict[str, str] = {
    "P001": "the text is not a plan",
    "P002": "the edition is not known to this plancc",
    "P101": "a name is not declared",
    "P102": "a name is declared twice",
    "P103": "a file cannot be read or imported",
    "P104": "a setting or option does not exist here",
    "P105": "a parameter is outside its domain, or cannot be set",
    "P106": "a requirement of the plan does not hold",
    "P107": "a template is used with the wrong arguments",
    "P108": "a template uses itself",
    "P109": "a declaration is never used (warning)",
    "P110": "a value has the wrong kind",
    "P111": "an expression cannot be computed",
    "P112": "a statement cannot stand in an imported file",
    "P201": "the axes do not multiply to the number of devices",
    "P202": "a slice goes beyond the cluster",
    "P203": "a budget exceeds the memory of a device",
    "P204": "meshes that share devices promise more memory than these have",
    "P205": "a mesh names a device twice",
    "P301": "a mesh has no such axis",
    "P302": "a dim does not exist in the language",
    "P303": "a split is uneven (warning)",
    "P304": "an axis has two jobs on one tensor",
    "P305": "a state dim is split although nothing is trained",
    "P306": "a pattern matches nothing in the model",
    "P307": "a module has no mesh",
    "P308": "kv_heads cannot follow heads (warning)",
    "P309": "a rule is wholly overridden by later ones (warning)",
    "P310": "a dim does not exist on the target",
    "P311": "the model block differs from the model",
    "P312": "tied parameters lie on two meshes",
    "P313": "a coordinate lies beyond its axis",
    "P314": "an operator without a row",
    "P315": "an operator's row does not fit its call",
    "P316": "a combine or share has nothing to do",
    "P317": "state dims that no stage of ZeRO has",
    "P318": "copies of experts do not divide over the ranks",
    "P401": "a statement cannot stand in this block",
    "P402": "a guard always or never holds",
    "P403": "a pool cannot have this size",
    "P404": "a pool step never takes effect",
    "P405": "a plan has very many variants (warning)",
    "P406": "a pool may be empty where it is used",
    "P407": "a guard is not a comparison of inputs with constants",
    "P501": "a comm line selects no traffic",
    "P502": "a wire type is not known",
    "P503": "a pipeline has fewer micro-batches than stages (warning)",
    "P504": "a pipeline schedule is not known",
    "P505": "values travel in a lossy type while inferring (warning)",
    "P506": "a pipeline axis carries no stages (warning)",
    "P507": "an overlap is deeper than the heads of a device allow (warning)",
    "P508": "a schedule table is wrong",
    "P509": "virtual stages do not fit",
    "P601": "a tensor axis crosses nodes (warning)",
    "P602": "a device needs more memory than its budget",
    "P701": "a rank failed",
    "P702": "an input lies outside its declared range",
    "P703": "there are fewer ranks than the plan needs",
    "P901": "a feature is not supported yet",
}


def code_page(code: str) -> str | None:
    """The page of a code as Markdown text; None for an unknown code."""
    if code not in CODES:
        return None
    return (Path(__file__).parent / "codes" / f"{code}.md").read_text("utf-8")
