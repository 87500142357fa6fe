"""Planted faults in schedules and programs of training, and plans whose pipelines cannot be trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import pytest
from lowered import captured, plan_file
from pipe_cases import HEAD, STAGES, beside, plain, schedule, table, three, trained

from plancc.compiler import compile_graph
from plancc.dsl import PlanError, load_plan
from plancc.ir.program import Merge, ProgramSet, RankProgram, Recv, Send, Transfer
from plancc.ir.schedule import Action
from plancc.passes.check_programs import program_problems
from plancc.passes.run_programs import deadlocks, expand, unequal_calls

Rows = list[list[Action]]


@cache
def programs_of(name: str, virtual: int = 1, kind: str = "plain") -> ProgramSet:
    """Right programs: a pipeline of two stages, three micro-batches."""
    text = {"plain": plain, "beside": lambda pp, line: beside(line, pp)}[kind](
        2, schedule(name, 3, virtual)
    )
    found = trained(text).compiled.unit("train").programs
    assert found is not None and not program_problems(found)
    return found


def with_rows(programs: ProgramSet, change: Callable[[Rows], None]) -> ProgramSet:
    """The programs under other rows of the schedule."""
    assert programs.schedule is not None
    rows = [list(row) for row in programs.schedule.rows]
    change(rows)
    changed = replace(programs.schedule, rows=tuple(map(tuple, rows)))
    return replace(programs, schedule=changed)


def swap(rank: int, a: int, b: int) -> Callable[[Rows], None]:
    """Two actions of a rank change places."""

    def change(rows: Rows) -> None:
        rows[rank][a], rows[rank][b] = rows[rank][b], rows[rank][a]

    return change


FAULTS: Sequence[tuple[str, Callable[[Rows], None], str]] = [
    ("1F1B", swap(1, 0, 2), "`B0` comes before `F0`"),
    ("GPipe", swap(1, 0, 2), "order of sending"),
    ("GPipe", swap(0, 3, 4), "order of sending"),
    ("1F1B", swap(0, 0, 1), "order of sending"),
    ("1F1B", swap(1, 0, 1), "`B0` comes before `F0`"),
    ("1F1B", lambda rows: rows[0].pop(2), "never runs `B0`"),
    ("1F1B", lambda rows: rows[1].pop(0), "never runs `F0`"),
    ("zero_bubble", lambda rows: rows[1].pop(), "never runs `W2`"),
    ("zero_bubble", lambda rows: rows[1].append(rows[1][1]), "runs `I0` twice"),
    ("1F1B", lambda rows: rows[0].insert(0, rows[0].pop(2)), "`B0` comes before `F0`"),
    ("GPipe", lambda rows: rows.pop(), "1 rows for 2 pipeline ranks"),
]


@pytest.mark.parametrize(("name", "change", "text"), FAULTS)
def test_rows_that_do_not_run(name: str, change: Callable[[Rows], None], text: str) -> None:
    """Actions that are swapped, dropped or doubled in one rank's row."""
    problems = program_problems(with_rows(programs_of(name), change))
    assert problems and text in problems[0], problems


def test_a_circle() -> None:
    """Ranks that wait for each other: who, where, for what."""

    def change(rows: Rows) -> None:
        rows[0][:] = (
            [a for a in rows[0] if a.kind == "F" and a.batch < 1]
            + [a for a in rows[0] if a.kind == "B" and a.batch < 1]
            + [a for a in rows[0] if a.batch >= 1]
        )
        rows[1][:] = sorted(rows[1], key=lambda a: (a.kind == "B", a.batch))

    (problem,) = program_problems(with_rows(programs_of("GPipe"), change))
    assert (
        problem.startswith("deadlock: rank 0 waits at `B0`") and "rank 1 waits at `F1`" in problem
    )


def edited(
    programs: ProgramSet, name: str, section: str, edit: Callable[[list], list]
) -> ProgramSet:
    """The programs with the instructions of one section of one class changed (their number is kept)."""

    def one(program: RankProgram) -> RankProgram:
        if program.name != name:
            return program
        at = [s.name for s in program.sections].index(section)
        steps = list(program.section(at))
        start = program.sections[at].start
        new = edit(list(steps))
        assert len(new) == len(steps)
        whole = list(program.instructions)
        whole[start : start + len(steps)] = new
        return replace(program, instructions=tuple(whole))

    return replace(programs, programs=tuple(map(one, programs.programs)))


def moved_channel(steps: list) -> list:
    """The first transfer on another channel."""
    at = next(i for i, s in enumerate(steps) if isinstance(s, (Send, Recv, Transfer)))
    edge = replace(steps[at].edge, channel=steps[at].edge.channel + 2)
    return [*steps[:at], replace(steps[at], edge=edge), *steps[at + 1 :]]


def reversed_transfers(kind: type) -> Callable[[list], list]:
    """Transfers of one kind in the opposite order."""

    def edit(steps: list) -> list:
        places = [i for i, s in enumerate(steps) if isinstance(s, kind)]
        assert len(places) > 1
        out = list(steps)
        for a, b in zip(places, reversed(places), strict=True):
            out[a] = steps[b]
        return out

    return edit


def test_wrong_channel() -> None:
    """A receive on another channel than its send."""
    found = program_problems(edited(programs_of("1F1B"), "base[pp=1]", "forward_1", moved_channel))
    assert found and "has another form" in found[0]


@pytest.mark.parametrize("kind", [Send, Recv])
def test_messages_out_of_order(kind: type) -> None:
    """Two messages of one stream change places on one side: the first of them is named."""
    programs = edited(
        programs_of("1F1B", kind="beside"), "base[pp=0]", "forward_0", reversed_transfers(kind)
    )
    found = program_problems(programs)
    assert any("comes where transfer" in problem for problem in found), found
    assert any("in forward_0 of micro-batch 0" in problem for problem in found), found


def test_lost_and_doubled_transfers() -> None:
    """A send that a class lacks, or that stands in the function of another chunk."""
    programs = programs_of("interleaved", 2)
    sends = [i for p in programs.programs[:1] for i in p.instructions if isinstance(i, Send)]
    name = programs.programs[0].name

    def lose(steps: list) -> list:
        return [replace(s, edge=sends[-1].edge) if isinstance(s, Send) else s for s in steps]

    found = program_problems(edited(programs, name, "forward_0", lose))
    assert found and any("has 0 x send instead of 1" in text for text in found), found


def test_a_send_in_the_wrong_function() -> None:
    """A value that is sent from another chunk's function than the one that the receiver pairs it with."""
    programs = programs_of("interleaved", 2)
    first = programs.programs[0]
    parts = {s.name: list(first.section(at)) for at, s in enumerate(first.sections)}
    a = next(s for s in parts["forward_0"] if isinstance(s, Send))
    b = next(s for s in parts["forward_2"] if isinstance(s, Send))
    change = {id(a): b, id(b): a}
    swapped = replace(first, instructions=tuple(change.get(id(s), s) for s in first.instructions))
    found = program_problems(replace(programs, programs=(swapped, *programs.programs[1:])))
    assert any("forward_0 of micro-batch 0 comes where" in text for text in found), found


def shared() -> ProgramSet:
    """Attention over cut keys on the devices of both stages: all of them meet for every layer."""
    text = beside(schedule("1F1B", 3), first=0, rule="split kv_seq over hp")
    programs = trained(text).compiled.unit("train").programs
    assert programs is not None and not program_problems(programs)
    return programs


def test_collectives_in_another_order() -> None:
    """A member of a stage that comes to its collectives in another order than the others."""
    programs = shared()
    names = [program.name for program in programs.programs]
    assert names == ["base[pp=0] + far", "far + base[pp=1]"]
    found = program_problems(edited(programs, names[0], "forward_1", reversed_transfers(Merge)))
    assert any("of far differs between" in text for text in found), found


def test_collectives_from_another_function() -> None:
    """A member that would run its calls in another order than the others."""
    programs = shared()
    runs = dict(expand(programs))
    name, other = runs
    calls = list(runs[name])
    at = next(i for i, call in enumerate(calls) if call.name == "forward_1")
    calls[at : at + 2] = reversed(calls[at : at + 2])
    (text,) = unequal_calls(programs, {**runs, name: calls})
    assert text.startswith("collectives of far: ") and "of micro-batch" in text
    (text,) = deadlocks(programs, {**runs, name: calls[:at]})
    assert f"{other} waits in forward_1 of micro-batch 0" in text, text


def errors(text: str) -> list[tuple[str, str]]:
    """(code, message and notes) of what is wrong with a plan."""
    with pytest.raises(PlanError) as told:
        trained(text)
    found = [d for d in told.value.diagnostics if d.level == "error"]
    return [(d.code, " ".join([d.message, *d.notes])) for d in found]


def test_values_that_go_back() -> None:
    """A head on the first stage, an embedding on the last one, layers in the wrong order."""
    for ends, module in (
        ("place embed_tokens, norm, lm_head on base[pp = 0]\n", "norm"),
        ("place embed_tokens, norm, lm_head on base[pp = -1]\n", "layers.0.input_norm"),
    ):
        ((code, text),) = errors(plain(2, schedule("1F1B", 3), ends=ends))
        assert code == "P901" and "back to an earlier stage" in text
        assert f"is needed by {module}" in text, text
    chain = (
        "mesh a[tp = 1] on local[0:1]\nmesh b[tp = 1] on local[1:2]\nplace ** on a\n"
        "place layers.1, layers.3 on b\npipeline a -> b { microbatches = 2 }\n"
    )
    ((code, text),) = errors(HEAD + chain)
    assert code == "P901" and "is needed by layers.2" in text, text


def test_two_pipelines() -> None:
    """P901 names both."""
    text = (
        f"{HEAD}model m {{ mode = train }}\nmesh base[pp = 2, qq = 2] on local\nplace ** on base\n{STAGES}"
        + schedule("GPipe", 2) + schedule("GPipe", 2).replace(".pp", ".qq")
    )  # fmt: skip
    assert ("P901", "training with two pipelines is not supported yet") in errors(text)


def test_a_circle_ends_with_a_message() -> None:
    """Should a wrong order ever run: local ranks stop and say who waits for whom, they never hang."""
    lowered = trained(plain(2, schedule("1F1B", 3)))
    row = lowered.artifact.manifest["programs"][0]
    order = row["schedule"]["order"]
    wrong = sorted(order, key=lambda a: (a[1] == 0 and a[0] == "F", a[1], a[0] == "B"))
    row["schedule"]["order"] = wrong
    result = lowered.verify()
    assert not result.ok
    message = result.variants[0].message
    assert "wait" in message or "raised" in message, message


@pytest.mark.parametrize(("name", "virtual"), [("1F1B", 1), ("zero_bubble", 5)])
def test_large_pipelines_are_checked_by_classes(name: str, virtual: int) -> None:
    """4096 ranks, 80 layers, 64 micro-batches are sixteen classes: the check does not grow with ranks."""
    cluster = "cluster pod { devices a100[4096] { per_node = 8; memory = 80GB } }\n"
    text = three(32, 16, 8, schedule(name, 64, virtual)).replace("on local", "on a100")
    text = text.replace(HEAD, HEAD + cluster).replace("(block = balanced)", "")
    sizes = (("ffn", 24), ("heads", 8), ("hidden", 16), ("layers", 80))
    plan, report = load_plan(plan_file(text))
    assert plan is not None, report.diagnostics
    compiled = compile_graph(plan, captured("dense", sizes), report, phases=("train",))
    programs = compiled.unit("train").programs
    assert programs is not None and len(programs.programs) == 16
    assert not program_problems(programs)
    assert program_problems(with_rows(programs, swap(7, 40, 42)))


def test_tables_that_do_not_run() -> None:
    """P508 at the plan, before any program."""
    found = errors(plain(2, table("F0 F1 B0 B1", "F1 B1 F0 B0")))
    assert {code for code, _ in found} == {"P508"}
