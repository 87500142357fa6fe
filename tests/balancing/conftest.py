"""One thread a test process; the modules of equivalence tests are importable."""

import sys
from pathlib import Path

import torch

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "equivalence")]
torch.set_num_threads(1)
