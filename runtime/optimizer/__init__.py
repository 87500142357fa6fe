"""Optimizers on a rank's own parameters: masters, loss scaling, clipping, schedules, their state."""

from plancc.runtime.optimizer.owned import Owned, StatePiece, StepReport
from plancc.runtime.optimizer.rank import NonFinite, RankOptimizer
from plancc.runtime.optimizer.schedule import learning_rate
from plancc.runtime.optimizer.spec import OptimizerSpec, SpecError

__all__ = [
    "NonFinite",
    "OptimizerSpec",
    "Owned",
    "RankOptimizer",
    "SpecError",
    "StatePiece",
    "StepReport",
    "learning_rate",
]
