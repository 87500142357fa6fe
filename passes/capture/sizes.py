"""Sizes of captured values: torch's symbolic integers as ints or sympy expressions in B and T."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch import Tensor
from torch.utils._sympy import functions as torch_functions

from plancc.ir.graph import BATCH, TOKENS, Size


class Sizes:
    """Converts torch.SymInt values, with the input symbols renamed to BATCH and TOKENS.

    `limits` holds the largest value of a symbol that the traced model accepts, by symbol name.
    """

    def __init__(self, ranges: Mapping[sympy.Symbol, Any], example: Mapping[sympy.Symbol, int]):
        self.ranges = ranges
        self.example = example
        self.symbols: dict[sympy.Symbol, sympy.Symbol] = {}
        self.known: dict[Any, Any] = {}
        self.limits: dict[str, int] = {}

    def bind(self, value: Tensor) -> None:
        """Name the symbols of an input's dims: dim 0 is the batch, dim 1 the tokens."""
        for size, symbol in zip(value.shape, (BATCH, TOKENS), strict=False):
            if not isinstance(size, torch.SymInt) or not size.node.expr.is_Symbol:
                continue
            self.symbols.setdefault(size.node.expr, symbol)
            bounds = self.ranges.get(size.node.expr)
            if bounds is not None and isinstance(bounds.upper, sympy.Integer):
                self.limit(symbol, int(bounds.upper))

    def limit(self, symbol: sympy.Symbol, largest: int) -> None:
        """Note that a symbol is at most `largest`."""
        self.limits[symbol.name] = min(largest, self.limits.get(symbol.name, largest))

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
        if expr.is_Symbol:
            return self.symbols.get(expr, expr)
        if expr in (sympy.true, sympy.false):
            return bool(expr)
        if expr.is_Number:
            return int(expr) if expr.is_Integer else float(expr)
        args = [sympy.sympify(self.rename(arg)) for arg in expr.args]
        return self.rename(args[0]) if not args else self.rebuild(expr, args)

    def rebuild(self, expr: Any, args: list[Any]) -> Any:
        """Make `expr` anew from renamed arguments."""
        kind = type(expr)
        if kind in (torch_functions.FloorDiv, torch_functions.CleanDiv):
            result = floor_division(*args)
        elif kind in (torch_functions.Mod, torch_functions.PythonMod):
            result = sympy.Mod(*args)
        elif kind in (torch_functions.Max, sympy.Max, torch_functions.Min, sympy.Min):
            result = self.extreme(args, kind in (torch_functions.Max, sympy.Max))
        else:
            result = expr.func(*args)
        if isinstance(result, sympy.Integer):
            return int(result)
        return sympy.expand(result) if isinstance(result, sympy.Expr) else result

    def extreme(self, args: list[Any], largest: bool) -> Any:
        """Return the maximum or minimum, decided where the sizes allow only one answer."""
        best = args[0]
        for other in args[1:]:
            ahead = self.sign(best - other)
            if ahead is None:
                return (sympy.Max if largest else sympy.Min)(*args)
            best = best if (ahead > 0) == largest else other
        return best

    def sign(self, difference: Any) -> int | None:
        """Return 1 where `difference` is never negative, -1 where never positive, None if neither.

        Where it depends on a size being small enough, the example decides, and the size is limited.
        """
        if difference.is_number:
            return 1 if difference >= 0 else -1
        free = list(difference.free_symbols)
        slope = difference.diff(free[0]) if len(free) == 1 else sympy.Symbol("unknown")
        if not slope.is_number or slope == 0:
            return None
        symbol, rising = free[0], slope > 0
        first = difference.subs(symbol, 1)
        largest = self.limits.get(symbol.name)
        last = slope if largest is None else difference.subs(symbol, largest)
        if first >= 0 and last >= 0:
            return 1
        if first <= 0 and last <= 0:
            return -1
        here = difference.subs(symbol, self.example.get(symbol, 1))
        if (here >= 0 and rising) or (here < 0 and not rising):
            return None
        self.limit(symbol, int(sympy.floor(sympy.solve(difference, symbol)[0])))
        return -1 if rising else 1


def floor_division(base: Any, divisor: Any) -> Any:
    """Return base // divisor, as a plain quotient where it divides."""
    quotient = sympy.cancel(base / divisor)
    return quotient if sympy.denom(quotient) == 1 else sympy.floor(quotient)
