"""What plans resolve to: places, meshes, templates, imports, parameters, settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from plancc.dsl import ResolvedPlan, Source, load_plan
from plancc.dsl.plan import Call, Combine, Expr, Job, Setting, Share
from plancc.dsl.support import report_unsupported, unsupported

GOLDEN = Path(__file__).parents[1] / "golden" / "check"


def load(text: str, sets: dict[str, str] | None = None) -> ResolvedPlan:
    """The plan of a text without errors, read as if it lay among the golden files."""
    source = Source(str(GOLDEN / "text.plan"), f"plan text, edition 1\n{text}")
    plan, report = load_plan(source, sets)
    assert plan is not None, [d.message for d in report.diagnostics]
    return plan


def sample(name: str, sets: dict[str, str] | None = None) -> ResolvedPlan:
    """One of the sample plans."""
    plan, report = load_plan(GOLDEN / f"sample_{name}.plan", sets)
    assert plan is not None, [d.message for d in report.diagnostics]
    return plan


def test_meshes() -> None:
    """Devices are numbers in row-major order, over all groups of the cluster."""
    plan = sample("hetero_pipeline")
    assert plan.meshes["back"].devices == tuple(range(8, 16))
    assert [g.first for g in plan.cluster.groups] == [0, 8]  # type: ignore[union-attr]
    assert plan.cluster.groups[1].facts["flops"] == 989e12  # type: ignore[union-attr]
    assert plan.meshes["back"].budget == 72 * 10**9
    fa = sample("fa_pool").meshes["fa"]
    assert fa.is_pool and fa.axis("sp").steps == (0, 8, 16, 24, 32) and fa.axis("sp").size == 32


def test_local() -> None:
    """`local` has as many devices as are asked for, from device 0 on."""
    plan = load("mesh a[x = 2, y = 3] on local\nmesh b[z = 2] on local[4:6]\nplace ** on a\n")
    assert plan.cluster is None
    assert plan.meshes["a"].devices == (0, 1, 2, 3, 4, 5)
    assert plan.meshes["b"].devices == (4, 5)


def test_slices() -> None:
    """Slices of layers take parameters, and negative numbers where `layers` is stated."""
    plan = load(
        "param cut = 3\nmodel m { layers = 12 }\nmesh a[x = 2] on local\n"
        "place layers[0:cut], layers[cut:].mlp on a\nplace layers[-4:] on a\n"
    )
    assert [t.pattern for p in plan.places for t in p.targets] == [
        "layers[0:3]", "layers[3:].mlp", "layers[8:]",
    ]  # fmt: skip


def test_template_hygiene() -> None:
    """A template sees its own file; its parameters hide names of the same spelling."""
    plan = sample("megatron_1f1b")
    coords = [(p.targets[0].pattern, p.mesh, p.coords) for p in plan.places if p.coords]
    assert coords == [("embed_tokens", "train", {"pp": 0}), ("norm", "train", {"pp": 3})]
    jobs = [rule for p in plan.places for rule in p.rules if isinstance(rule, Job)]
    assert [job.axes for job in jobs if job.dims == ("heads",)] == [("tp",)]


def test_rules() -> None:
    """Rules keep their options, folded as far as they can be."""
    place = sample("fa_pool").places[-1]
    assert place.mesh == "fa" and place.targets[0].kind == "op"
    job, share, combine = place.rules
    assert isinstance(job, Job) and isinstance(share, Share) and isinstance(combine, Combine)
    block = job.options["block"]
    assert isinstance(block, Expr) and block.evaluate({"seq_len": 100, "sp": 8}) == 13
    assert share.mesh == "base" and combine.options == {"tree": ("node", "pod")}
    setting = sample("ma_separation").places[-1].rules[-1]
    assert isinstance(setting, Setting)
    assert setting.value == Call("dynamic", (), {"every": 100, "tolerance": 0.1})


def test_place_without_mesh_knows_its_axes() -> None:
    """Sizes of axes come from the mesh that earlier lines put the target on."""
    text = "mesh a[tp = 2] on local[0:2]\nmesh b[tp = 4] on local[2:6]\nplace ** on a\n"
    text += "place layers[0:2] on b\nmodel m { ffn = 12 }\n"
    plan = load(text + "place layers[0:1].mlp { split ffn over tp (block = ffn / tp) }\n")
    assert plan.places[-1].rules[0].options == {"block": 3}  # type: ignore[union-attr]
    plan = load(text + "place layers.*.mlp { split ffn over tp (block = ffn / tp) }\n")
    block = plan.places[-1].rules[0].options["block"]  # type: ignore[union-attr]
    assert block.evaluate({"tp": 4}) == 3


SETS = [
    ("param a = 1", "2", 2), ("param a = 1", "-2", -2), ("param a = 1.5", "2", 2),
    ("param a = 0.5", "2.25e1", 22.5), ("param a = true", "false", False),
    ('param a = "x"', "y z", "y z"), ("param a = 8GB", "4GiB", 2**32),
    ("param a = 30s", "5ms", 0.005), ("param a = [1, 2]", "[3,4]", (3, 4)),
]  # fmt: skip


@pytest.mark.parametrize(("line", "text", "value"), SETS)
def test_sets(line: str, text: str, value: object) -> None:
    """`--set` is typed by the default."""
    plan = load(f"{line}\nmesh m[x = 1] on local\nplace ** on m\n", {"a": text})
    assert plan.params == {"a": value}


@pytest.mark.parametrize(("line", "text"), [("param a = 1", "1.5"), ("param a = 1", "9" * 30),
    ("param a = 8GB", "3s"), ("param a = true", "1"), ("param a = 8GB", "-1GB")])  # fmt: skip
def test_wrong_sets(line: str, text: str) -> None:
    """A `--set` of another kind is P105."""
    _, report = load_plan(Source("t.plan", f"plan t, edition 1\n{line}\n"), {"a": text})
    assert "P105" in {d.code for d in report.errors}


def test_import_parameters() -> None:
    """Parameters of an imported file are set by their path."""
    text = 'import "lib/pod.plan" as pod\nmesh m[x = 8 * pod.nodes] on h100\nplace ** on m\n'
    plan = load(text, {"pod.nodes": "3"})
    assert plan.params == {"pod.nodes": 3} and plan.cluster is not None
    assert plan.cluster.size == 24
    assert len(plan.files) == 2


def test_inputs_and_facts() -> None:
    """Inputs are ranges, facts are values; a fixed input is a range of one."""
    plan = sample("fsdp")
    assert plan.inputs == {"batch": (256, 256), "seq_len": (8192, 8192)}
    assert plan.facts["mode"] == "train" and "batch" not in plan.facts


def test_phase() -> None:
    """`phase` restricts the variants, and must belong to the mode."""
    rest = "mesh a[x = 2] on local\nplace ** on a\n"
    rest += "when seq_len > 4 { place layers.* { split ffn over x } }\n"
    plan = load("model m { phase = decode; seq_len in 1..8 }\n" + rest)
    assert len(plan.variants) == 2
    text = "plan t, edition 1\nmodel m { phase = decode; mode = train; seq_len in 1..8 }\n" + rest
    _, report = load_plan(Source("t.plan", text))
    assert [d.code for d in report.errors] == ["P110"]


def test_named_dims() -> None:
    """The model block can name dims of parameters, which rules may then split."""
    text = "model m { dim inner = layers.*.mixer.in_proj.weight[0] }\nmesh a[x = 2] on local\n"
    plan = load(text + "place ** on a\nplace layers.*.mixer { split inner over x }\n")
    assert [(d.name, d.pattern, d.index) for d in plan.dims] == [
        ("inner", "layers.*.mixer.in_proj.weight", 0)
    ]


def test_no_follow_on_errors() -> None:
    """A declaration that failed is not reported again where it is used."""
    text = "plan t, edition 1\nlet a = 1 / 0\nmesh m[x = a] on local\n"
    text += "place ** on m { split batch over x }\n"
    text += "mesh other[y = 2] on local\nplace layers.* { split heads over x }\nrequire m.x == a\n"
    text += "pipeline over m.x { microbatches = a }\ncomm over m.x { op = send }\n"
    _, report = load_plan(Source("t.plan", text))
    assert [d.code for d in report.diagnostics] == ["P111"]


def test_sorted() -> None:
    """Diagnostics come in the order of the file."""
    _, report = load_plan(GOLDEN / "P101_names.plan")
    lines = [d.span.line for d in report.diagnostics if d.span]
    assert lines == sorted(lines) and len(lines) > 5


def test_template_notes() -> None:
    """An error in a template says where the template is used."""
    text = "plan t, edition 1\ntemplate f(ax) { place layers.* { split ffn over ax } }\n"
    text += "mesh m[x = 2] on local\nplace ** on m\nuse f(y)\n"
    _, report = load_plan(Source("t.plan", text))
    (found,) = report.errors
    assert found.code == "P301" and found.notes == ("used at t.plan:5",)


def test_crlf(tmp_path: Path) -> None:
    """Windows line ends and a byte order mark change nothing."""
    path = tmp_path / "crlf.plan"
    text = (GOLDEN / "sample_tp8_pp2.plan").read_text("utf-8")
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    plan, report = load_plan(path)
    assert plan is not None and not report.diagnostics
    assert [p.span.line for p in plan.places] == [p.span.line for p in sample("tp8_pp2").places]


UNSUPPORTED = {
    "fa_pool": set(),
    "fsdp": set(),
    "deepseek_ep": {"routing within groups of experts",
                    
                    "a layout other than contiguous (keys: or zigzag)",
                    "a plan for decode alone"},
    "tp8_pp2": set(),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_unsupported(name: str) -> None:
    """What cannot be executed yet is found, with its place."""
    plan = sample(name)
    assert {text for text, _ in unsupported(plan)} == UNSUPPORTED[name]
    _, report = load_plan(GOLDEN / f"sample_{name}.plan")
    report_unsupported(plan, report)
    assert {d.code for d in report.errors} <= {"P901"}
