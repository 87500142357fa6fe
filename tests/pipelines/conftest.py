"""One thread a test process; tests/equivalence/lowered.py is importable."""

import sys
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1] / "equivalence")]
torch.set_num_threads(1)
