"""Sizes of captured values: torch's symbolic integers as ints or sympy expressions in B and T."""

from __future__ import annotations

from typing import Any

import sympy
import torch
from torch import Tensor
from torch.utils._sympy import functions as torch_functions

from plancc.ir.graph import BATCH, TOKENS, Size


class Sizes:
    """Converts torch.SymInt values, with the input symbols renamed to BATCH and TOKENS."""

    def __init__(self) -> None:
        self.symbols: dict[sympy.Symbol, sympy.Expr] = {}
        self.known: dict[Any, Any] = {}

    def bind(self, value: Tensor) -> None:
        """Name the symbols of an input's dims: dim 0 is the batch, dim 1 the tokens."""
        for size, symbol in zip(value.shape, (BATCH, TOKENS), strict=False):
            if isinstance(size, torch.SymInt) and size.node.expr.is_Symbol:
                self.symbols.setdefault(size.node.expr, symbol)

    def of(self, size: Any) -> Size | float | bool:
        """Return an int, an expression in B and T, or the plain number that `size` is."""
        if not isinstance(size, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return size
        expr = size.node.expr
        if expr not in self.known:
            self.known[expr] = self.rename(expr)
        return self.known[expr]

    def rename(self, expr: Any) -> Any:
        """Rename symbols and turn torch's own sympy functions into sympy's."""
        plain = expr.replace(
            lambda part: isinstance(part, torch_functions.FloorDiv), _floor_div
        ).replace(lambda part: isinstance(part, torch_functions.Mod | torch_functions.PythonMod),
                  lambda part: sympy.Mod(*part.args)
        ) if not expr.is_Symbol and not expr.is_Number else expr
        result = plain.xreplace(self.symbols)
        if isinstance(result, sympy.Integer):
            return int(result)
        if result in (sympy.true, sympy.false):
            return bool(result)
        if isinstance(result, sympy.Float):
            return float(result)
        return result


def _floor_div(part: sympy.Expr) -> sympy.Expr:
    base, divisor = part.args
    quotient = sympy.cancel(base / divisor)
    return quotient if sympy.denom(quotient) == 1 else sympy.floor(quotient)
