"""plancc: a declarative parallel-plan compiler for PyTorch."""
