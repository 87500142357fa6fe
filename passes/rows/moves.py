"""Builders of rows for operators that move, cut, join and repeat: views, slices, concatenations."""

from __future__ import annotations

from dataclasses import replace

from plancc.ir.graph import Node, Ref, Size
from plancc.passes.rows.call import Call
from plancc.passes.rows.form import VIEW, Form, bounds, names, plain, put, whole


def view(call: Call) -> Form:
    """Same elements in the same order; only where the boundaries between dims lie differs."""
    return Form(VIEW, rules=("reshape",), linear="0")


def flatten(call: Call) -> Form:
    """A view that names no sizes, so nothing is adapted."""
    return Form(VIEW, linear="0")


def expand(call: Call) -> Form:
    """Size-1 and new leading dims become dims of their own class."""
    ins, outs = call.shape(0), call.out
    labels = names(len(outs))
    lead = len(outs) - len(ins)
    left = ["1" if size == 1 else labels[lead + i] for i, size in enumerate(ins)]
    return Form(f"{' '.join(left)} -> {' '.join(labels)}", rules=("shape:1",), linear="0")


def expand_as(call: Call) -> Form:
    """Like expand, to the dims of the second operand."""
    labels = " ".join(names(len(call.out)))
    lead = len(call.out) - len(call.shape(0))
    left = " ".join(names(len(call.out))[lead:])
    return Form(f"{left}, {labels} -> {labels}", linear="0")


def cast(call: Call) -> Form:
    """`to`, `_to_copy`: linear unless rounded to an integer or bool."""
    dtype = call.node.outs[0].dtype
    return Form("* -> ...", linear="0" if dtype.is_floating_point or dtype.is_complex else "")


def permute(call: Call) -> Form:
    """`permute`: the dims in the order of the argument."""
    labels = names(len(call.shape(0)))
    return _ordered(labels, [labels[dim] for dim in call.dims("dims")])


def transpose(call: Call) -> Form:
    """`transpose`, `swapaxes`: two dims change places."""
    labels = names(len(call.shape(0)))
    args = [arg for arg in call.node.args if isinstance(arg, int)]
    a, b = (arg % max(len(labels), 1) for arg in args)
    order = list(labels)
    if order:
        order[a], order[b] = order[b], order[a]
    return _ordered(labels, order)


def movedim(call: Call) -> Form:
    """`movedim` with one source and one destination."""
    labels = names(len(call.shape(0)))
    source, target = call.dim("source"), call.dim("destination")
    order = [name for dim, name in enumerate(labels) if dim != source]
    order.insert(target, labels[source])
    return _ordered(labels, order)


def reverse(call: Call) -> Form:
    """`t`, `T`, `numpy_T`: all dims in reverse order."""
    labels = names(len(call.shape(0)))
    return _ordered(labels, labels[::-1])


def swap_last(call: Call) -> Form:
    """`mT`, `adjoint`: the last two dims change places."""
    labels = names(len(call.shape(0)))
    return _ordered(labels, [*labels[:-2], labels[-1], labels[-2]])


def _ordered(labels: list[str], order: list[str]) -> Form:
    return Form(f"{' '.join(labels)} -> {' '.join(order)}", linear="0")


def unsqueeze(call: Call) -> Form:
    """A new dim of size 1."""
    labels = names(len(call.shape(0)))
    order = list(labels)
    order.insert(call.dim(rank=len(labels) + 1), "1")
    return _ordered(labels, order)


def squeeze(call: Call) -> Form:
    """Dims of size 1 go away: all, or those of the argument."""
    shape = call.shape(0)
    labels = names(len(shape))
    dims = call.dims() if call.arg("dim") is not None else range(len(shape))
    gone = [dim for dim in dims if shape[dim] == 1]
    left = [name for dim, name in enumerate(labels) if dim not in gone]
    rules = () if call.arg("dim") is not None else (f"squeeze:{','.join(map(str, gone))}",)
    return Form(f"{' '.join(labels)} -> {' '.join(left)}", linear="0", rules=rules)


def slice_dim(call: Call) -> Form:
    """`slice`, `narrow`: in = (lo + x + hi) -> x; with a step: in = (x !s) -> x."""
    dim = call.dim(default=0)
    size, length = call.shape(0)[dim], call.out[dim]
    step = call.arg("step", 1)
    if step == 1:
        return cut(call, dim, bounds(size, call.arg("start"), length))
    labels = names(len(call.out))
    start = call.arg("start") or 0
    fits = isinstance(size, int) and size % step == 0 and 0 <= start < step
    if fits:
        left = put(labels, dim, f"({labels[dim]} {step})")
        return Form(f"{left} -> {' '.join(labels)}", rules=(f"slice:{dim}",), linear="0")
    left = put(labels, dim, "_")
    return Form(f"{left} -> {put(labels, dim, '_')}", linear="0")


def cut(call: Call, dim: int, sizes: tuple[Size, Size, Size], where: str = "") -> Form:
    """The row that keeps the middle one of three parts of a dim."""
    rules = (f"slice:{where or dim}",)
    labels = names(len(call.out))
    name = labels[dim]
    if sizes[0] == 0 and sizes[2] == 0:
        text = " ".join(labels)
        return Form(f"{text} -> {text}", rules=rules, linear="0")
    if sizes[1] == 0:
        text = f"{' '.join(labels)} -> {put(labels, dim, '_')}"
        return Form(text, rules=rules, linear="0", dropped=(name,))
    parts = dict(zip((f"{name}.lo", name, f"{name}.hi"), sizes, strict=True))
    parts = {part: size for part, size in parts.items() if size != 0 or part == name}
    left = put(labels, dim, f"({'+'.join(parts)})")
    return Form(
        f"{left} -> {' '.join(labels)}",
        sizes=parts,
        rules=rules,
        linear="0",
        dropped=(name,),
    )


def select(call: Call) -> Form:
    """One index of a dim: of a concatenation the part (cut and dropped), else the dim is whole."""
    shape = call.shape(0)
    labels = names(len(shape))
    dim = call.dim(default=0)
    name = labels[dim]
    low, _, high = bounds(shape[dim], call.arg("index"), 1)
    parts = {part: n for part, n in ((f"{name}.lo", low), (f"{name}.hi", high)) if n != 0}
    middle = [f"{name}.lo"] * (low != 0) + ["1"] + [f"{name}.hi"] * (high != 0)
    left = put(labels, dim, f"({'+'.join(middle)})")
    rules = (f"select:{dim}",)
    return Form(f"{left} -> {put(labels, dim)}", parts, rules, "0", (name,), cut_leaves=False)


def split(call: Call) -> Form:
    """`split`, `chunk`: in = (p0 + p1 + ..) -> p0, p1, .."""
    dim = call.dim(default=0)
    labels = names(len(call.out))
    name = labels[dim]
    parts = {f"{name}.p{i}": out.shape[dim] for i, out in enumerate(call.node.outs)}
    outs = ", ".join(put(labels, dim, part) for part in parts)
    left = put(labels, dim, f"({'+'.join(parts)})" if len(parts) > 1 else next(iter(parts)))
    return Form(f"{left} -> {outs}", parts, (f"split:{dim}",), "0", (name,))


def slice_scatter(call: Call) -> Form:
    """`slice_scatter`: (lo + x + hi), x -> (lo + x + hi); with a step the dim is whole."""
    dim = call.dim(default=0)
    labels = names(len(call.out))
    size, length = call.out[dim], call.shape(1)[dim]
    if call.arg("step", 1) != 1 or length in (0, size):
        marked = " ".join(whole(labels, [dim]))
        return Form(f"{marked}, {put(labels, dim, '_')} -> {marked}")
    name = labels[dim]
    parts = dict(
        zip(
            (f"{name}.lo", f"{name}.x", f"{name}.hi"),
            bounds(size, call.arg("start"), length),
            strict=True,
        )
    )
    parts = {part: n for part, n in parts.items() if n != 0}
    total = put(labels, dim, f"({'+'.join(parts)})")
    text = f"{total}, {put(labels, dim, f'{name}.x')} -> {total}"
    return Form(text, parts, (f"slice_scatter:{dim}",))


def select_scatter(call: Call) -> Form:
    """`select_scatter`: the dim is whole, the source lacks it."""
    labels = names(len(call.out))
    dim = call.dim(default=0)
    marked = " ".join(whole(labels, [dim]))
    return Form(f"{marked}, {put(labels, dim)} -> {marked}")


def unbind(call: Call) -> Form:
    """Every index of a whole dim."""
    labels = names(len(call.shape(0)))
    dim = call.dim(default=0)
    out = put(labels, dim)
    left = " ".join(whole(labels, [dim]))
    return Form(f"{left} -> {', '.join([out] * len(call.node.outs))}", linear="0")


def cat(call: Call) -> Form:
    """x, y -> (x + y)."""
    shapes = [call.shapes[name] for _, name in call.operands() if name is not None]
    rank = len(call.out)
    labels = names(rank)
    dim = call.dim(default=0, rank=rank)
    sides, parts = [], []
    for index, shape in enumerate(shapes):
        if len(shape) != rank:
            sides.append(" ".join("_" * len(shape)))
            continue
        if shape[dim] == 0:
            sides.append(put(labels, dim, "_"))
            continue
        parts.append(f"{labels[dim]}.p{index}")
        sides.append(put(labels, dim, parts[-1]))
    total = f"({'+'.join(parts)})" if len(parts) > 1 else parts[0]
    return Form(f"{', '.join(sides)} -> {put(labels, dim, total)}", linear="all")


def stack(call: Call) -> Form:
    """The operands side by side in a new, whole dim."""
    labels = names(len(call.out) - 1)
    count = len(call.operands())
    out = list(labels)
    out.insert(call.dim(default=0, rank=len(call.out)), "_")
    return Form(f"{', '.join([' '.join(labels)] * count)} -> {' '.join(out)}", linear="all")


def repeat(call: Call) -> Form:
    """`repeat`, `tile`: every dim is (count size); the counts are dims of their own."""
    counts = call.arg("repeats", call.arg("dims"))
    shape = call.shape(0)
    counts = (1,) * (len(shape) - len(counts)) + tuple(counts)
    labels = names(len(counts))
    lead = len(counts) - len(shape)
    sizes = {f"r{name}": count for name, count in zip(labels, counts, strict=True)}
    rules = (f"repeat:{','.join(sizes)}",)
    out = [f"(r{name} {name})" if dim >= lead else f"r{name}" for dim, name in enumerate(labels)]
    return Form(f"{' '.join(labels[lead:])} -> {' '.join(out)}", sizes, rules, "0")


def repeat_interleave(call: Call) -> Form:
    """Every dim element `count` times in a row: (size count)."""
    labels = names(len(call.shape(0)))
    if call.arg("dim") is None:
        return Form(f"{' '.join('_' * len(labels))} -> _", linear="0")
    dim = call.dim()
    name = labels[dim]
    out = put(labels, dim, f"({name} r{name})")
    sizes = {f"r{name}": call.arg("repeats")}
    marks = ["-"] * len(labels)
    marks[dim] = f"r{name}"
    return Form(f"{' '.join(labels)} -> {out}", sizes, (f"repeat:{','.join(marks)}",), "0")


def index(call: Call) -> Form:
    """`index.Tensor`: indexed dims are whole, the index's own dims take their place.

    One index that is a constant range (`x[:, [-1]]`) is a slice.
    """
    indices = call.arg("indices")
    given = [(dim, item) for dim, item in enumerate(indices) if isinstance(item, Ref)]
    shape = call.shape(0)
    if len(given) == 1:
        dim, item = given[0]
        span = _constant_range(call, item.name, shape[dim])
        if span is not None:
            form = cut(call, dim, bounds(shape[dim], span, call.out[dim]), f"{dim},{span}")
            return replace(form, text=form.text.replace(" ->", ", _ ->"))
    return index_by(call, [dim for dim, _ in given], [item.name for _, item in given])


def index_by(call: Call, dims: list[int], indices: list[str]) -> Form:
    """The row of a gather by index tensors that are broadcast against each other."""
    labels = names(len(call.shape(0)))
    depth = max(len(call.shapes[name]) for name in indices)
    own = [f"i{n}" for n in range(depth)]
    sides = [" ".join(own[depth - len(call.shapes[name]) :]) for name in indices]
    kept = [name for dim, name in enumerate(labels) if dim not in dims]
    together = dims == list(range(dims[0], dims[-1] + 1))
    at = dims[0] if together else 0
    out = [*kept[:at], *own, *kept[at:]]
    if len(out) != len(call.out):
        sides = [" ".join("_" * len(call.shapes[name])) for name in indices]
        labels, dims = ["_"] * len(labels), []
        out = ["_"] * len(call.out)
    left = " ".join(whole(labels, dims))
    return Form(f"{', '.join([left, *sides])} -> {' '.join(out)}", linear="0" if dims else "")


def index_select(call: Call) -> Form:
    """`index_select`: one dim by a list of indices."""
    name = call.operands()[1][1]
    assert name is not None
    return index_by(call, [call.dim()], [name])


def _constant_range(call: Call, name: str, size: Size) -> int | None:
    """The start of a constant index 1-D tensor that counts up by one, else None."""
    maker: Node | None = call.makers.get(name)
    while maker is not None and maker.target.split(".")[1] in _COPIES:
        name = next(maker.refs())
        maker = call.makers.get(name)
    param = call.params.get(name)
    if param is None or param.data is None or param.data.dim() != 1 or param.data.is_meta:
        return None
    data = [int(item) for item in param.data.tolist()]
    if data != list(range(data[0], data[0] + len(data))) or (data[0] < 0 <= data[-1]):
        return None
    return int(plain(size + data[0])) if data[0] < 0 and isinstance(size, int) else data[0]


_COPIES = {"lift_fresh_copy", "alias", "clone", "to", "_to_copy", "detach", "contiguous"}
