"""One thread a test process; the helpers of tests/equivalence and tests/model_zoo.py are importable."""

import sys
from pathlib import Path

import torch

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "equivalence"), str(TESTS)]
torch.set_num_threads(1)
