"""register_op: a one-line row for a user's own operator."""

from __future__ import annotations

from plancc.passes.rows.notation import parse
from plancc.passes.rows.table import ROWS, USER_ROWS, Row

_LINEAR = ("", "0", "one", "all")


def register_op(op: str, row: str, *, linear: str = "") -> None:
    """Give `op` ("mylib::gelu_bias") its row ("... d, [d] -> ... d"), for every overload.

    The row is a claim about the kernel: a label without `!` may be cut, a label that no output has
    is summed over. `linear` says which partial operands pass through ("0" the first, "one" any
    single one, "all" only all together). Raises NotationError for a bad row and ValueError for a
    bad name, a bad `linear`, or an operator of the table.
    """
    namespace, sep, name = op.partition("::")
    if not sep or not namespace or not name or "." in op:
        raise ValueError(f"`{op}` is not an operator name like `mylib::gelu_bias`")
    if linear not in _LINEAR:
        raise ValueError(f"`linear` is one of {', '.join(map(repr, _LINEAR))}, not {linear!r}")
    parse(row)
    target = f"{namespace}.{name}"
    if any(known.rpartition(".")[0] == target for known in ROWS):
        raise ValueError(f"`{op}` has a row in the table of plancc")
    USER_ROWS[target] = Row(row, "", linear=linear)
