"""Operator rows: how each operator's dims belong together, in one table of factor notation."""

from __future__ import annotations

from plancc.passes.rows.call import Call, RowError, UnknownOperator
from plancc.passes.rows.form import VIEW, Form
from plancc.passes.rows.register import register_op
from plancc.passes.rows.table import ROWS, TABLE, Row, row_of

__all__ = [
    "ROWS",
    "TABLE",
    "VIEW",
    "Call",
    "Form",
    "Row",
    "RowError",
    "UnknownOperator",
    "register_op",
    "row_of",
]
