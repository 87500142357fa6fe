"""What is wrong with what a user asks of the simulator: cluster, inputs, an operator without cost."""

from __future__ import annotations

from collections.abc import Sequence


class SimulateError(Exception):
    """The simulation cannot be made, for reasons that lie with its inputs; `problems` are all of them."""

    def __init__(self, problems: str | Sequence[str]) -> None:
        self.problems = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))
