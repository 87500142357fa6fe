"""The place in the data as plain JSON: written by each rank for its rows, merged, checked.

`rows` holds a `Position` per row, `mark` a window start that none of them lies before; the rest
says which run it was, and must be the same when it goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from plancc.runtime.data.files import DataError
from plancc.runtime.data.lane import Position
from plancc.runtime.data.windows import Mark

VERSION = 1
_RUN = ("batch", "seq_len", "seed", "tokens")


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the state of all rows that the ranks' states hold; DataError if they disagree."""
    if not states:
        raise DataError("no data state to merge")
    first, *others = states
    try:
        merged = {**first, "rows": dict(first["rows"])}
        for state in others:
            for key in ("version", "step", *_RUN, "files"):
                if state[key] != first[key]:
                    raise DataError(f"the ranks' data states have different {key}")
            for row, position in state["rows"].items():
                if list(merged["rows"].setdefault(row, position)) != list(position):
                    raise DataError(f"two ranks have row {row} of the data at different places")
            if state["mark"]["serial"] < merged["mark"]["serial"]:
                merged["mark"] = state["mark"]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"not a data state: {error!r}") from error
    return merged


def restore(
    state: Mapping[str, Any], run: Mapping[str, Any], rows: Sequence[int]
) -> tuple[int, Mark, dict[int, Position]]:
    """Return step, mark and positions of `rows` from a state of the same run as `run` describes.

    Raise DataError naming what differs: sizes, seed, tokens, files, or a row that is not there.
    """
    try:
        if state["version"] != VERSION:
            raise DataError(f"a data state of version {state['version']}, this is {VERSION}")
        for key in _RUN:
            if state[key] != run[key]:
                raise DataError(
                    f"the run to resume had {key} = {state[key]}, this one has {run[key]}"
                )
        compare_files(state["files"], run["files"])
        missing = [row for row in rows if str(row) not in state["rows"]]
        if missing:
            raise DataError(f"the data state lacks row {missing[0]}: merge those of all ranks")
        positions = {row: Position(*state["rows"][str(row)]) for row in rows}
        step, mark = int(state["step"]), Mark.from_json(state["mark"])
        if len(mark.loads) != run["batch"] or mark.file >= len(run["files"]):
            raise ValueError("mark")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"not a data state: {error!r}") from error
    return step, mark, positions


def compare_files(saved: Sequence[Sequence[Any]], found: Sequence[Sequence[Any]]) -> None:
    """Raise DataError naming the first data file that is gone, new or changed."""
    before, now = [tuple(file) for file in saved], [tuple(file) for file in found]
    if before == now:
        return
    gone = [file for file in before if file not in now]
    new = [file for file in now if file not in before]
    names = {file[0] for file in new}
    if gone and gone[0][0] in names:
        what = f"{gone[0][0]} has changed"
    elif gone:
        what = f"{gone[0][0]} is not there"
    elif new:
        what = f"{new[0][0]} is new"
    else:
        what = "a file is there another number of times"
    raise DataError(f"the data is not that of the run to resume: {what}")
