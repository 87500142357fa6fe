"""What can be chosen: the parameters of a plan, and which of their values are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

from plancc.dsl import did_you_mean
from plancc.dsl.declared import Declared
from plancc.tune.forms import Sets, TuneError

FEW = 8
"""A range of no more values is looked at as a whole."""
MANY = 100_000
"""Values of a range that a user may name."""


@dataclass(frozen=True, slots=True)
class Knob:
    """One parameter with the values to look at, in the order in which they are tried.

    `start` is the plan's default. `left_out` counts the values of its domain that are not among them.
    """

    name: str
    values: tuple[str, ...]
    start: str
    left_out: int = 0


@dataclass(frozen=True, slots=True)
class Space:
    """All settings of some knobs. `skipped` names the parameters that have no domain to search."""

    knobs: tuple[Knob, ...]
    skipped: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """How many settings there are."""
        return prod(len(knob.values) for knob in self.knobs)

    def all(self) -> Iterator[Sets]:
        """Every setting; the last knob turns fastest."""
        names = [knob.name for knob in self.knobs]
        for texts in product(*(knob.values for knob in self.knobs)):
            yield tuple(zip(names, texts, strict=True))

    def starts(self) -> list[Sets]:
        """Where to begin: the defaults, then the low corner, the middle and the high corner."""
        corners = [[knob.start for knob in self.knobs]]
        for share in (0.0, 0.5, 1.0):
            corners.append(
                [ordered(knob)[round(share * (len(knob.values) - 1))] for knob in self.knobs]
            )
        names = [knob.name for knob in self.knobs]
        return list(dict.fromkeys(tuple(zip(names, c, strict=True)) for c in corners))

    def distance(self, sets: Sets) -> tuple[int, int]:
        """How far a setting is from the defaults: (knobs that differ, by how many values in all)."""
        steps = [
            abs(ordered(knob).index(text) - ordered(knob).index(knob.start))
            for knob, (_, text) in zip(self.knobs, sets, strict=True)
        ]
        return sum(map(bool, steps)), sum(steps)

    def nearer(self, sets: Sets) -> Sets:
        """One value nearer to the defaults in every knob."""
        found = []
        for knob, (name, text) in zip(self.knobs, sets, strict=True):
            values = ordered(knob)
            here, goal = values.index(text), values.index(knob.start)
            found.append((name, values[here + (here < goal) - (here > goal)]))
        return tuple(found)

    def lines(self, at: Sets) -> Iterator[list[Sets]]:
        """For each knob the settings that differ from `at` in nothing else."""
        for place, knob in enumerate(self.knobs):
            yield [with_text(at, place, text) for text in knob.values]

    def exchanges(self, at: Sets) -> list[Sets]:
        """The settings in which one knob goes up to its next value and another one down."""
        found = []
        for up, one in enumerate(self.knobs):
            for down, other in enumerate(self.knobs):
                more, less = beside(one, at[up][1], 1), beside(other, at[down][1], -1)
                if up != down and more is not None and less is not None:
                    found.append(with_text(with_text(at, up, more), down, less))
        return found


def with_text(sets: Sets, place: int, text: str) -> Sets:
    """A setting with another value of one knob."""
    return (*sets[:place], (sets[place][0], text), *sets[place + 1 :])


def ordered(knob: Knob) -> tuple[str, ...]:
    """The values of a knob: numbers from low to high, all else as it stands."""
    if all(text.isdecimal() for text in knob.values):
        return tuple(sorted(knob.values, key=int))
    return knob.values


def beside(knob: Knob, text: str, way: int) -> str | None:
    """The next value up or down; None at the end."""
    values = ordered(knob)
    place = values.index(text) + way
    return values[place] if 0 <= place < len(values) else None


def space_of(
    params: Sequence[Declared], devices: int, fixed: Mapping[str, str],
    searched: Mapping[str, Sequence[str]],
) -> Space:  # fmt: skip
    """The knobs of a plan: `fixed` are left alone, `searched` names values in place of a domain's.

    Raises TuneError for names that the plan does not have, and for values outside a domain.
    """
    check_names(params, fixed, searched)
    known = {param.name: param for param in params}
    knobs, skipped = [], []
    for name, param in known.items():
        if name in fixed:
            continue
        if name in searched:
            knobs.append(asked_knob(param, searched[name]))
        elif param.bounds is None and param.choices is None:
            skipped.append(name)
        else:
            knobs.append(domain_knob(param, devices))
    return Space(tuple(knobs), tuple(skipped))


def check_names(
    params: Sequence[Declared], fixed: Mapping[str, str], searched: Mapping[str, Sequence[str]]
) -> None:
    """TuneError for names that the plan does not have, and for those both fixed and searched."""
    known = {param.name: param for param in params}
    for name in (*fixed, *searched):
        if name not in known:
            raise TuneError(unknown_text(name, known))
    both = sorted(set(fixed) & set(searched))
    if both:
        raise TuneError(f"`{both[0]}` is both fixed by --set and searched")


def unknown_text(name: str, known: Mapping[str, object]) -> str:
    """A parameter that is none."""
    near = did_you_mean(name, list(known))
    told = f"did you mean `{near}`?" if near else f"the plan has {', '.join(known) or 'none'}"
    return f"cannot find parameter `{name}`; {told}"


def asked_knob(param: Declared, values: Sequence[str]) -> Knob:
    """A knob with the values that a user names; TuneError where the domain lacks one."""
    if param.kind == "list":
        raise TuneError(
            f"`{param.name}` is a list, which --search cannot choose: fix it with --set"
        )
    wrong = [text for text in values if text not in param]
    if wrong:
        raise TuneError(f"`{param.name} = {wrong[0]}` is outside its domain, {domain_text(param)}")
    texts = tuple(dict.fromkeys(values))
    return Knob(param.name, texts, param.default if param.default in texts else texts[0])


def domain_knob(param: Declared, devices: int) -> Knob:
    """A knob with values of the domain: all of a list or of a short range, else those that often fit.

    Of a long range these are the powers of two, the divisors of the number of devices, the default and the
    two ends; values that divide the devices come first.
    """
    if param.choices is not None:
        return Knob(param.name, param.choices, param.default)
    assert param.bounds is not None
    lo, hi, step = param.bounds
    whole = range(lo, hi + 1, step)
    if len(whole) <= FEW:
        return Knob(param.name, tuple(map(str, whole)), param.default)
    powers = {1 << n for n in range(hi.bit_length())}
    divisors = {n for n in range(1, devices + 1) if devices % n == 0}
    some = {n for n in powers | divisors | {int(param.default), lo, hi} if n in whole}
    order = sorted(some, key=lambda n: (n > devices, n not in divisors, n))
    return Knob(param.name, tuple(map(str, order)), param.default, len(whole) - len(order))


def domain_text(param: Declared) -> str:
    """A domain as written."""
    if param.choices is not None:
        return ", ".join(param.choices)
    assert param.bounds is not None
    lo, hi, step = param.bounds
    return f"{lo}..{hi}" + (f" step {step}" if step != 1 else "")


def read_values(text: str) -> tuple[str, ...]:
    """`1,2,4`, `1..64` or `0..32 step 8` (every value of it) as texts; TuneError for none."""
    values: list[str] = []
    for word in (part.strip() for part in text.split(",")):
        ends, _, step = word.partition(" step ")
        low, dots, high = ends.partition("..")
        numbers = [low, high, step.strip() or "1"]
        if dots and all(n.isdecimal() for n in numbers) and int(numbers[2]):
            held = max(0, 1 + (int(high) - int(low)) // int(numbers[2]))
            if not 0 < held <= MANY:
                raise TuneError(f"`{word}` holds {held:,} values; 1 to {MANY:,} can be searched")
            values += map(str, range(int(low), int(high) + 1, int(numbers[2])))
        elif word and not dots:
            values.append(word)
        else:
            raise TuneError(f"cannot read the values `{text}`: write 1,2,4 or 1..64")
    return tuple(values)
