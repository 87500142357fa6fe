"""One thread a test process; the modules of equivalence and moe tests are importable."""

import sys
from pathlib import Path

import torch

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / name) for name in ("equivalence", "moe")]
sys.path.append(str(TESTS.parent))  # the package `tests`
torch.set_num_threads(1)
