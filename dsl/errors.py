"""The two errors every floor may raise: the plan is wrong, or plancc is wrong.

The third kind, a run that failed, is `plancc.runtime.failure.RankFailure`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plancc.dsl.diagnostics import Diagnostic


class PlanError(Exception):
    """The plan (or the model it names) is wrong; carries every diagnostic that was collected."""

    def __init__(self, diagnostics: tuple[Diagnostic, ...]) -> None:
        self.diagnostics = diagnostics
        super().__init__("\n".join(f"{d.level}[{d.code}]: {d.message}" for d in diagnostics))


class Bug(Exception):
    """plancc is wrong: an invariant of its own does not hold. Never raised for user input."""
