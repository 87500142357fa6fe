"""What a plan writes is done or refused: blocks, operators, layers, phases, ranges."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_artifacts import HEAD, compiled, dense
from torch import Tensor, nn

import plancc
from plancc.dsl import load_plan
from plancc.dsl.errors import PlanError


@pytest.mark.parametrize(
    ("rule", "codes"),
    [
        ("place op rms_norm { split hidden over tp }", []),
        ("place op add { split hidden over tp }", []),
        ("place op kv_cache { split heads over tp (block = balanced) }", []),
        ("place op conv { split hidden over tp }", ["P306"]),
        ("place op aten.mm { split hidden over tp }", ["P306"]),
        ("place op linear in norm { split hidden over tp }", ["P306"]),
        ("place embed_tokens { split layers over tp }", ["P310"]),
        ("place layers.*.mlp { split ffn over tp (block = 7) }", ["P901"]),
        ("place layers.*.mlp { split ffn over tp (block = ceil(96 / 3)) }", []),
        ('pipeline over base.tp { schedule = "zero_bubble"; microbatches = 3 }', ["P506"]),
    ],
)
def test_rules_act_or_are_refused(tmp_path: Path, rule: str, codes: list[str]) -> None:
    """A rule that cannot act has a diagnostic at its line."""
    try:
        warned = [d.code for d in compiled(tmp_path, f"{HEAD}{rule}\n").warnings]
    except PlanError as problem:
        warned = [d.code for d in problem.diagnostics]
    assert sorted(warned) == sorted(codes)


def test_operator_words_cut(tmp_path: Path) -> None:
    """`op silu` reaches the operators that it names."""
    built = compiled(tmp_path, f"{HEAD}place op silu {{ split ffn over tp }}\n")
    assert "'ffn', 96, 'tp'" in (built.folder / "forward_v0_c0.py").read_text()


def test_constant_block_is_kept(tmp_path: Path) -> None:
    """`ceil(ffn / tp)` folds to a number and still gives equal blocks with a short end."""
    text = "model m { ffn = 96 }\nmesh base[tp = 5] on local\nplace ** on base\n"
    rule = "place layers.*.mlp { split ffn over tp (block = ceil(ffn / tp)) }\n"
    built = compiled(tmp_path, text + rule)
    assert "'ffn', 96, 'tp:block'" in (built.folder / "forward_v0_c0.py").read_text()


def test_uneven_split_of_everything_warns(tmp_path: Path) -> None:
    """P303 also where the first module that a pattern covers lacks the dim."""
    text = "mesh base[tp = 3] on local\nplace ** on base { split heads over tp }\n"
    assert "P303" in [d.code for d in compiled(tmp_path, text).warnings]


def test_replicated_layers_are_whole(tmp_path: Path) -> None:
    """A later `replicate layers` undoes an earlier `split layers`."""
    text = "mesh base[pp = 2] on local\nplace ** on base\nplace layers.* { split layers over pp }\n"
    assert len(compiled(tmp_path, text).compiled.sets[0][1].programs) == 2
    undone = compiled(tmp_path, f"{text}place layers.* {{ replicate layers over pp }}\n")
    assert len(undone.compiled.sets[0][1].programs) == 1


def test_layers_beside_another_list(tmp_path: Path) -> None:
    """A sequential head next to the layers is not taken for the list of layers."""

    class Headed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = dense()
            self.head = nn.Sequential(nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 256))

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.head(self.model(input_ids))

    text = "mesh base[pp = 2] on local\nplace ** on base\nplace layers.* { split layers over pp }\n"
    assert len(compiled(tmp_path, text, Headed()).compiled.sets[0][1].programs) == 2


@pytest.mark.parametrize("phase", ["forward", "prefill"])
def test_stated_phase_is_the_only_one(tmp_path: Path, phase: str) -> None:
    """`phase = ...` in the model block restricts what is compiled."""
    built = compiled(tmp_path, f"model m {{ phase = {phase} }}\n{HEAD}")
    assert built.artifact.phases == (phase,)


def test_decode_alone_is_refused(tmp_path: Path) -> None:
    """P901: nothing would fill its cache."""
    with pytest.raises(PlanError, match="decode alone"):
        compiled(tmp_path, f"model m {{ phase = decode }}\n{HEAD}")


def test_ranges_that_exclude_each_other(tmp_path: Path) -> None:
    """A plan without any possible input is wrong, and has no variants to compile."""
    plan = tmp_path / "t.plan"
    block = "model m { seq_len in 40..64; batch in 3..3; tokens in 1..50 }"
    plan.write_text(f"plan t, edition 1\n{block}\n{HEAD}")
    resolved, report = load_plan(plan, {})
    assert resolved is None
    assert [d.code for d in report.errors] == ["P110"]


def test_nothing_but_nan_proves_nothing(tmp_path: Path) -> None:
    """A model whose outputs are all NaN is not called verified."""

    class Blank(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(16, 8)

        def forward(self, input_ids: Tensor) -> Tensor:
            return self.table(input_ids) * float("nan")

    with pytest.raises(plancc.VerifyError, match="nothing but NaN"):
        compiled(tmp_path, HEAD, Blank(), verify=True)
