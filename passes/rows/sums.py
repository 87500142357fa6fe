"""Builders of rows for operators that reduce, contract, search or normalise along a dim."""

from __future__ import annotations

from plancc.passes.rows.call import Call
from plancc.passes.rows.form import Form, names, put, whole


def _reduced(call: Call, dims: tuple[int, ...], marked: bool) -> tuple[str, str]:
    """Input and output text of a reduction over `dims`, kept as size 1 or not."""
    labels = names(len(call.shape(0)))
    keep = call.arg("keepdim", False)
    out = [
        name if dim not in dims else "1"
        for dim, name in enumerate(labels)
        if keep or dim not in dims
    ]
    return " ".join(whole(labels, dims) if marked else labels), " ".join(out)


def plus(call: Call) -> Form:
    """`add`, `sub`: linear in both operands together; a number is added by every rank."""
    both = all(name is not None for _, name in call.operands())
    return Form("* -> ...", linear="all" if both else "")


def total(call: Call) -> Form:
    """`sum`: reduced dims are contracted, so they may be cut."""
    left, out = _reduced(call, call.dims(), marked=False)
    return Form(f"{left} -> {out}", linear="0")


def mean(call: Call) -> Form:
    """`mean`: a sum whose divisor stays the global one."""
    dims = call.dims()
    left, out = _reduced(call, dims, marked=False)
    return Form(f"{left} -> {out}", rules=(f"mean:{','.join(map(str, dims))}",), linear="0")


def extreme(call: Call) -> Form:
    """`amax`, `max.dim`, `argmax`, `any`, `var` ...: the reduced dims are whole."""
    left, out = _reduced(call, call.dims(), marked=True)
    return Form(f"{left} -> {', '.join([out] * len(call.node.outs))}")


def along(call: Call) -> Form:
    """`softmax`, `cumsum`, `sort`, `flip`, `roll`: same dims, whole along the argument's."""
    dims = call.dims("dims") if call.arg("dims") is not None else (call.dim(),)
    labels = names(len(call.shape(0)))
    text = " ".join(whole(labels, dims))
    return Form(f"{text} -> {', '.join([text] * len(call.node.outs))}")


def topk(call: Call) -> Form:
    """`topk`: the dim is whole, the k found are a class of their own."""
    labels = names(len(call.shape(0)))
    dim = call.dim()
    out = put(labels, dim, "!k_found")
    return Form(f"{' '.join(whole(labels, [dim]))} -> {out}, {out}")


def other_size(call: Call) -> Form:
    """`diff`, `pad`-like along one dim: the dim is whole and comes out as another class."""
    labels = names(len(call.shape(0)))
    dim = call.dim()
    rest = sum(name is not None for _, name in call.operands()) - 1
    sides = [put(labels, dim, "_")] * (1 + rest)
    return Form(f"{', '.join(sides)} -> {put(labels, dim, '_')}")


def pad(call: Call) -> Form:
    """`pad`: padded dims are whole and come out as another class."""
    labels = names(len(call.shape(0)))
    count = len(call.arg("pad")) // 2
    amounts = call.arg("pad")
    padded = [
        len(labels) - 1 - i for i in range(count) if amounts[2 * i] != 0 or amounts[2 * i + 1] != 0
    ]
    text = " ".join("_" if dim in padded else name for dim, name in enumerate(labels))
    return Form(f"{text} -> {text}")


def normalised(call: Call) -> Form:
    """`layer_norm`, `rms_norm`: the last dims are whole, weight and bias have just those."""
    rank = len(call.shape(0))
    labels = names(rank)
    count = len(call.arg("normalized_shape"))
    last = " ".join(labels[rank - count :])
    left = " ".join(whole(labels, range(rank - count, rank)))
    outs = [" ".join(labels)]
    outs += [" ".join([*labels[: rank - count], *["1"] * count])] * (len(call.node.outs) - 1)
    return Form(f"{left}, [{last}], [{last}] -> {', '.join(outs)}", rules=(f"norm:{count}",))


def group_norm(call: Call) -> Form:
    """`group_norm`: everything but the batch is whole."""
    labels = names(len(call.shape(0)))
    text = " ".join(whole(labels, range(1, len(labels))))
    return Form(f"{text}, [{labels[1]}], [{labels[1]}] -> {text}")


def batch_norm(call: Call) -> Form:
    """`batch_norm` in evaluation: one mean and variance a channel."""
    labels = names(len(call.shape(0)))
    if call.arg("training", False):
        labels = whole(labels, [d for d in range(len(labels)) if d != 1])
    text = " ".join(labels)
    channel = f", [{labels[1].lstrip('!')}]" * 4
    return Form(f"{text}{channel} -> {text}")


def prelu(call: Call) -> Form:
    """`prelu`: one slope for all, or one a channel (dim 1)."""
    labels = names(len(call.out))
    slopes = labels[1] if len(labels) > 1 else "_"
    return Form(f"{' '.join(labels)}, {slopes} -> {' '.join(labels)}")


def matmul(call: Call) -> Form:
    """`matmul` by ranks: batch dims are broadcast, 1-D operands lose their dim."""
    left, right = len(call.shape(0)), len(call.shape(1))
    a = "i" if left == 1 else "... m i"
    b = "i" if right == 1 else ("i o" if right == 2 else "... i o")
    if left == 2 and right == 2:
        a = "m i"
    out = ("..." if "..." in a + b else "") + (" m" if left > 1 else "")
    return Form(f"{a}, {b} -> {out}{' o' if right > 1 else ''}")


def addmm(call: Call) -> Form:
    """`addmm`: the addend is a row vector or a matrix."""
    bias = "o" if len(call.shape(0)) == 1 else "m o"
    return Form(f"+ {bias}, m i, i o -> m o")


def einsum(call: Call) -> Form:
    """`einsum`: the equation is the row."""
    equation = call.arg("equation").replace(" ", "")
    left, arrow, right = equation.partition("->")
    sides = left.split(",")
    if not arrow:
        seen = left.replace(",", "").replace(".", "")
        right = ("..." if "..." in left else "") + "".join(
            sorted(name for name in set(seen) if seen.count(name) == 1)
        )
    twice = {name for side in sides for name in side if side.count(name) > 1 and name != "."}
    ins = ", ".join(_spaced(side, twice) for side in sides)
    return Form(f"{ins} -> {_spaced(right, twice)}")


def _spaced(side: str, marked: set[str]) -> str:
    parts = [("!" if name in marked else "") + name for name in side.replace("...", "@")]
    return " ".join(parts).replace("@", "...")


def gather(call: Call) -> Form:
    """`gather`: the dim is whole, the index brings its own; other dims are shared where equal."""
    source, picked = call.shape(0), call.shape(1)
    dim = call.dim()
    left = names(len(source))
    right = list(left)
    for d, name in enumerate(names(len(source))):
        if d == dim:
            left[d], right[d] = f"!{name}", f"n{name}"
        elif source[d] != picked[d]:
            left[d], right[d] = f"!{name}", f"!n{name}"
    out = " ".join(right)
    return Form(f"{' '.join(left)}, {out} -> {out}")


def scatter(call: Call) -> Form:
    """`scatter`: the dim is whole, in the source too; other dims are shared where equal."""
    into, index = call.shape(0), call.shape(1)
    dim = call.dim()
    labels = names(len(into))
    left, right = list(labels), list(labels)
    for d in range(len(labels)):
        if d == dim or into[d] != index[d]:
            left[d], right[d] = f"!{labels[d]}", "_"
    sides = [" ".join(left)]
    for _, name in call.operands()[1:]:
        if name is not None:
            sides.append(" ".join(right))
    return Form(f"{', '.join(sides)} -> {' '.join(left)}")


def index_add(call: Call) -> Form:
    """`index_add`, `index_copy`: dim and source along it are whole."""
    labels = names(len(call.shape(0)))
    dim = call.dim()
    left = " ".join(whole(labels, [dim]))
    ranks = [len(call.shapes[name]) for _, name in call.operands() if name is not None]
    source = put(labels, dim, "_") if ranks[2] else ""
    return Form(f"{left}, _, {source} -> {left}")


def convolution(call: Call) -> Form:
    """`conv1d/2d/3d`: input channels are contracted, space is whole; groups are a dim."""
    rank = len(call.shape(0))
    space = " ".join("_" * (rank - 2))
    groups = call.arg("groups", 1)
    if groups == 1:
        return Form(f"n c {space}, o c {space}, [+ o] -> n o {space}")
    sizes = {"g": groups}
    return Form(
        f"n (g !c) {space}, (g !o) !c {space}, [(g !o)] -> n (g !o) {space}",
        sizes,
        ("groups:g",),
    )


def spatial(call: Call) -> Form:
    """Pooling and interpolation: everything but batch and channels is whole and of a new class."""
    rank = len(call.shape(0))
    space = " ".join("_" * (rank - 2))
    return Form(f"n c {space} -> {', '.join([f'n c {space}'] * len(call.node.outs))}")


def opaque(call: Call) -> Form:
    """Nothing is known: everything whole, outputs of their own classes."""
    sides = [
        " ".join("_" * len(call.shapes[name])) for _, name in call.operands() if name is not None
    ]
    outs = [" ".join("_" * len(out.shape)) for out in call.node.outs]
    return Form(f"{', '.join(sides)} -> {', '.join(outs)}")


def like_first(call: Call) -> Form:
    """Everything whole, but the output has the first operand's dims (`index_put`, `triu`)."""
    labels = " ".join(whole(names(len(call.out)), range(len(call.out))))
    rest = [
        " ".join("_" * len(call.shapes[name]))
        for _, name in call.operands()[1:]
        if name is not None
    ]
    return Form(f"{', '.join([labels, *rest])} -> {labels}")


def factory(call: Call) -> Form:
    """A tensor from sizes: `zeros`, `full`; the operand of `new_zeros` gives only its type."""
    out = " ".join(names(len(call.out)))
    ins = [name for _, name in call.operands() if name is not None]
    if not ins:
        return Form(f"-> {out}", rules=("shape:0",))
    like = [f"u{i}" for i in range(len(call.shape(0)))]
    return Form(f"{' '.join(like)} -> {out}", rules=("shape:1",), dropped=tuple(like))


def whole_factory(call: Call) -> Form:
    """A tensor whose elements depend on their global position: computed whole, then sliced."""
    ins = [name for _, name in call.operands() if name is not None]
    sides = ", ".join(" ".join("_" * len(call.shapes[name])) for name in ins)
    return Form(
        f"{sides} -> {' '.join(whole(names(len(call.out)), range(len(call.out))))}",
        rules=("factory",),
    )


def meshgrid(call: Call) -> Form:
    """`meshgrid` (ij): one dim an operand."""
    labels = names(len(call.out))
    if call.arg("indexing", "ij") != "ij":
        return opaque(call)
    return Form(f"{', '.join(labels)} -> {', '.join([' '.join(labels)] * len(labels))}")


def attention(call: Call) -> Form:
    """`plancc::attention`; queries may be cut unless positions before them lie in a cache."""
    moved = call.shape(0)[2] != call.shape(1)[2]
    q = "!q" if moved and (call.arg("causal") or call.arg("window")) else "q"
    return Form(
        f"b (k g) {q} !d, b k !s !d, b k !s e, [b (k g) {q} !s], [(k g)] -> b (k g) {q} e",
        rules=("q_start", "keys:s"),
    )


def experts(call: Call) -> Form:
    """`plancc::experts` in its four layouts of weights; E and i are contracted."""
    gated = call.arg("gated", True)
    inner = ("(i 2)" if call.arg("interleaved", False) else "(i+i)") if gated else "i"
    turned = call.arg("transposed", False)
    weights = f"E !c {inner}, E i !o" if turned else f"E {inner} !c, E !o i"
    return Form(
        f"t !c, t !r, t !r, {weights}, [E {inner}], [+ E !o] -> t !o", rules=("index_base:E",)
    )
