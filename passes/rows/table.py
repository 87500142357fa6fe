"""The table: one row for each operator, in factor notation.

`notation` is the row, or the builder that writes it for a call's arguments. `linear` says which
partial operands may pass: "0" the first, "one" any single one, "all" only all together, "" none.
`rules` names what lowering adapts in a local call (README.md has the list).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from plancc.passes.rows import moves, sums
from plancc.passes.rows.call import Call
from plancc.passes.rows.form import Form

Builder = Callable[[Call], Form]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of the table."""

    notation: str | Builder
    ops: str  # "linear.default mm.default": overloads of the namespace, separated by blanks
    linear: str = ""
    rules: tuple[str, ...] = ()
    namespace: str = "aten"

    def form(self, call: Call) -> Form:
        """The row as `call` has it."""
        if isinstance(self.notation, str):
            return Form(self.notation, rules=self.rules, linear=self.linear)
        return self.notation(call)


ELEMENTWISE = """
    add.Scalar sub.Scalar rsub.Scalar rsub.Tensor pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar
    div.Tensor_mode div.Scalar_mode floor_divide.default floor_divide.Scalar
    remainder.Scalar remainder.Tensor fmod.Scalar fmod.Tensor
    eq.Scalar eq.Tensor ne.Scalar ne.Tensor lt.Scalar lt.Tensor le.Scalar le.Tensor
    gt.Scalar gt.Tensor ge.Scalar ge.Tensor isin.Tensor_Scalar
    where.self where.ScalarSelf where.ScalarOther where.Scalar
    minimum.default maximum.default min.other max.other fmax.default fmin.default
    clamp.default clamp.Tensor clamp_min.default clamp_max.default
    masked_fill.Scalar masked_fill.Tensor lerp.Scalar lerp.Tensor
    addcmul.default addcdiv.default atan2.default
    logical_not.default logical_and.default logical_or.default logical_xor.default
    bitwise_not.default bitwise_and.Tensor bitwise_and.Scalar bitwise_or.Tensor
    bitwise_or.Scalar bitwise_xor.Tensor bitwise_xor.Scalar __and__.Tensor __or__.Tensor
    __rshift__.Scalar __lshift__.Scalar bitwise_left_shift.Tensor_Scalar
    bitwise_right_shift.Tensor_Scalar
    silu.default gelu.default relu.default relu6.default leaky_relu.default elu.default
    celu.default selu.default tanh.default sigmoid.default hardtanh.default
    hardswish.default hardsigmoid.default softplus.default log_sigmoid.default
    mish.default threshold.default
    abs.default exp.default exp2.default expm1.default log.default log2.default log10.default
    log1p.default sqrt.default rsqrt.default square.default reciprocal.default sign.default
    sgn.default cos.default sin.default tan.default acos.default asin.default atan.default
    cosh.default sinh.default erf.default erfc.default erfinv.default
    floor.default ceil.default round.default round.decimals trunc.default frac.default
    isnan.default isinf.default isfinite.default nan_to_num.default
    zeros_like.default ones_like.default full_like.default empty_like.default
    polar.default complex.default angle.default conj.default conj_physical.default
    resolve_conj.default resolve_neg.default real.default imag.default
    copy.default fill.Scalar fill.Tensor type_as.default
"""

TABLE: tuple[Row, ...] = (
    # values only
    Row("* -> ...", ELEMENTWISE),
    Row(sums.plus, "add.Tensor sub.Tensor"),
    Row("* -> ...", "mul.Tensor mul.Scalar", linear="one"),
    Row("* -> ...", "div.Tensor div.Scalar neg.default true_divide.Tensor", linear="0"),
    Row(
        "* -> ...",
        "alias.default clone.default contiguous.default detach.default lift_fresh_copy.default "
        "lift_fresh.default dropout.default positive.default",
        linear="0",
    ),
    Row(sums.prelu, "prelu.default"),
    Row(moves.cast, "to.dtype to.device to.dtype_layout to.other _to_copy.default"),
    # matrix products
    Row("... i, o i, [+ o] -> ... o", "linear.default"),
    Row(sums.addmm, "addmm.default"),
    Row("m i, i o -> m o", "mm.default"),
    Row("m i, i -> m", "mv.default"),
    Row("i, i ->", "dot.default vdot.default"),
    Row("i, o -> i o", "outer.default ger.default"),
    Row("g m i, g i o -> g m o", "bmm.default"),
    Row("+ g m o, g m i, g i o -> g m o", "baddbmm.default"),
    Row(sums.matmul, "matmul.default"),
    Row(sums.einsum, "einsum.default"),
    # attention, experts, look-ups
    Row(sums.attention, "attention.default", namespace="plancc"),
    Row(
        "b (k g) !q !d, b k !s !d, b k !s e, [b (k g) !q !s] -> b (k g) !q e",
        "scaled_dot_product_attention.default",
    ),
    Row(sums.experts, "experts.default", namespace="plancc"),
    Row(
        "b k !t d, b k !t e -> b k !s d, b k !s e",
        "cache_append.default",
        rules=("keys:s", "append:t"),
        namespace="plancc",
    ),
    Row("v h, ... -> ... h", "embedding.default", rules=("index_base:v",)),
    Row("!n !v, !n ->", "cross_entropy_loss.default nll_loss_nd.default nll_loss.default"),
    Row("... v, ... -> ...", "cross_entropy.default", rules=("joined:v",), namespace="plancc"),
    Row("..., !v h -> ... h", "embedding_shard.default", namespace="plancc"),
    Row(moves.index, "index.Tensor"),
    Row(moves.index_select, "index_select.default"),
    Row(sums.gather, "gather.default"),
    Row(sums.scatter, "scatter.src scatter.value scatter.reduce scatter_add.default"),
    Row(sums.index_add, "index_add.default index_copy.default"),
    Row(sums.like_first, "index_put.default masked_scatter.default"),
    Row(moves.slice_scatter, "slice_scatter.default"),
    Row(moves.select_scatter, "select_scatter.default"),
    Row("... -> ... !n", "one_hot.default"),
    Row("..., _ -> ...", "bucketize.Tensor searchsorted.Tensor isin.Tensor_Tensor"),
    # along a dim
    Row("... !r !c -> ... !r !c", "triu.default tril.default"),
    Row(
        sums.along,
        "softmax.int _softmax.default log_softmax.int _log_softmax.default "
        "cumsum.default cumprod.default cummax.default cummin.default logcumsumexp.default "
        "sort.default sort.stable argsort.default argsort.stable flip.default roll.default",
    ),
    Row(sums.total, "sum.default sum.dim_IntList"),
    Row(sums.mean, "mean.default mean.dim"),
    Row(
        sums.extreme,
        "amax.default amin.default max.dim min.dim max.default min.default "
        "argmax.default argmin.default any.default any.dim any.dims all.default all.dim all.dims "
        "prod.default prod.dim_int var.dim var.correction var_mean.correction std.dim "
        "std.correction logsumexp.default linalg_vector_norm.default norm.ScalarOpt_dim "
        "count_nonzero.default count_nonzero.dim_IntList median.dim",
    ),
    Row(sums.topk, "topk.default"),
    Row(sums.other_size, "diff.default"),
    Row(sums.pad, "pad.default constant_pad_nd.default"),
    Row(
        sums.normalised,
        "layer_norm.default rms_norm.default native_layer_norm.default _fused_rms_norm.default",
    ),
    Row(sums.group_norm, "group_norm.default"),
    Row(sums.batch_norm, "batch_norm.default"),
    Row(
        sums.convolution,
        "conv1d.default conv2d.default conv3d.default conv1d.padding "
        "conv2d.padding conv3d.padding convolution.default",
    ),
    Row(
        sums.spatial,
        "max_pool1d.default max_pool2d.default avg_pool1d.default "
        "avg_pool2d.default adaptive_avg_pool1d.default adaptive_avg_pool2d.default "
        "_adaptive_avg_pool2d.default upsample_bilinear2d.default upsample_bilinear2d.vec "
        "upsample_bicubic2d.default upsample_bicubic2d.vec upsample_nearest2d.default "
        "upsample_nearest2d.vec",
    ),
    # same elements, other dims
    Row(
        moves.view,
        "view.default reshape.default _unsafe_view.default view_copy.default "
        "unflatten.int view_as.default reshape_as.default",
    ),
    Row(moves.flatten, "flatten.using_ints ravel.default"),
    Row(moves.expand, "expand.default broadcast_to.default"),
    Row(moves.expand_as, "expand_as.default"),
    Row(moves.permute, "permute.default"),
    Row(moves.transpose, "transpose.int swapaxes.default swapdims.default"),
    Row(moves.movedim, "movedim.int moveaxis.int"),
    Row(moves.reverse, "t.default numpy_T.default"),
    Row(moves.swap_last, "mT.default mH.default adjoint.default"),
    Row(moves.unsqueeze, "unsqueeze.default"),
    Row(moves.squeeze, "squeeze.default squeeze.dim squeeze.dims"),
    Row(moves.slice_dim, "slice.Tensor narrow.default"),
    Row(moves.select, "select.int"),
    Row(moves.split, "split.Tensor split.sizes split_with_sizes.default chunk.default"),
    Row(moves.unbind, "unbind.int"),
    Row(moves.cat, "cat.default concat.default"),
    Row(moves.stack, "stack.default"),
    Row(moves.repeat, "repeat.default tile.default"),
    Row(moves.repeat_interleave, "repeat_interleave.self_int"),
    Row("... _ -> ...", "view_as_complex.default"),
    Row("... -> ... _", "view_as_real.default"),
    # from sizes
    Row(
        sums.factory,
        "zeros.default ones.default full.default empty.memory_format "
        "new_zeros.default new_ones.default new_full.default new_empty.default",
    ),
    Row(
        sums.whole_factory,
        "arange.default arange.start arange.start_step linspace.default "
        "eye.default eye.m tril_indices.default triu_indices.default rand.default randn.default",
    ),
    Row("->", "scalar_tensor.default"),
    Row(sums.meshgrid, "meshgrid.default meshgrid.indexing"),
)


class Named(Protocol):
    """A row of a table of operators: `ops` are their names in a `namespace`, with spaces between."""

    @property
    def ops(self) -> str:
        """`add.Tensor sub.Tensor`."""

    @property
    def namespace(self) -> str:
        """`aten`, or one of the user's."""


N = TypeVar("N", bound=Named)


def by_target(table: Iterable[N]) -> dict[str, N]:
    """The rows of a table by operator; ValueError for an operator with two."""
    found: dict[str, N] = {}
    for row in table:
        for op in row.ops.split():
            target = f"{row.namespace}.{op}"
            if target in found:
                raise ValueError(f"two rows for `{target}`")
            found[target] = row
    return found


ROWS: dict[str, Row] = by_target(TABLE)
USER_ROWS: dict[str, Row] = {}


def row_of(target: str) -> Row | None:
    """The row of an operator overload; a user's row counts for every overload."""
    return ROWS.get(target) or USER_ROWS.get(target.rpartition(".")[0])
