"""One thread a test process; the modules beside the tests are importable."""

import torch

torch.set_num_threads(1)
