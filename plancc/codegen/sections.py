"""The functions of a training program: what passes between them and what they return."""

from __future__ import annotations

from plancc.codegen.names import weight_key
from plancc.ir.program import RankProgram, operands, produced


def kept_values(program: RankProgram) -> dict[str, int]:
    """Value -> section that makes it, for values that a later section uses: they are kept in `s`."""
    maker: dict[str, int] = {}
    found: dict[str, int] = {}
    for index in range(len(program.sections)):
        for step in program.section(index):
            for name in operands(step):
                if maker.get(name, index) != index:
                    found[name] = maker[name]
            maker.update((held.name, index) for held in produced(step))
    return found


def section_results(program: RankProgram, index: int) -> dict[str, str]:
    """What a section returns: outputs of the model, or the gradients of the weights by their keys."""
    if program.sections[index].kind == "reduce":
        keys = {w.held.name: weight_key(program, w) for w in program.weights}
        return {keys[name]: held.name for name, held in program.gradients.items()}
    made = {held.name for step in program.section(index) for held in produced(step)}
    return {name: held.name for name, held in program.outputs.items() if held.name in made}
