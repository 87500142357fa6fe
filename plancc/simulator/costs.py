"""The table: what each operator costs on a rank, one row for each operator (or list of operators).

FLOPs are counted for products and attention only (a multiplication and an addition are two), as
`torch.utils.flop_counter` does; everything else is bound by its bytes. `lies` says how results lie in memory:
"new" (row by row), "like" (dims in the order of the operand's), "view" (what torch says, so that a `reshape`
is free or a copy as it really is), "share" (a view of one range of a dim), "first" (dims in the order of the
first operand's, whatever its sizes). Costs are in costs_memory, _products, _attention, _experts, _rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from plancc.passes.rows.table import ELEMENTWISE, USER_ROWS, by_target
from plancc.simulator import costs_attention as attention
from plancc.simulator import costs_experts as experts
from plancc.simulator import costs_memory as memory
from plancc.simulator import costs_products as products
from plancc.simulator import costs_rows as rows
from plancc.simulator.costs_memory import Works
from plancc.simulator.local_call import Call

Count = Callable[[Call], Works]


@dataclass(frozen=True, slots=True)
class Cost:
    """One row: the kernels of a call, and those of its gradients; `late` those that W actions run."""

    forward: Count
    backward: Count
    ops: str
    lies: str = "new"
    namespace: str = "aten"
    late: Count = memory.nothing


VIEWS = """
    alias.default detach.default contiguous.default lift_fresh.default dropout.default positive.default
    to.dtype to.device to.dtype_layout to.other type_as.default
    real.default imag.default conj.default resolve_conj.default resolve_neg.default
    view.default reshape.default _unsafe_view.default unflatten.int view_as.default reshape_as.default
    flatten.using_ints ravel.default expand.default broadcast_to.default expand_as.default
    permute.default transpose.int swapaxes.default swapdims.default movedim.int moveaxis.int
    t.default numpy_T.default mT.default mH.default adjoint.default
    unsqueeze.default squeeze.default squeeze.dim squeeze.dims
    slice.Tensor narrow.default select.int
    split.Tensor split.sizes split_with_sizes.default chunk.default unbind.int
    view_as_complex.default view_as_real.default
"""
FILLS = """
    zeros_like.default ones_like.default full_like.default fill.Scalar fill.Tensor
    zeros.default ones.default full.default new_zeros.default new_ones.default new_full.default
    arange.default arange.start arange.start_step linspace.default eye.default eye.m
    tril_indices.default triu_indices.default rand.default randn.default scalar_tensor.default
"""
NO_WORK = "empty_like.default empty.memory_format new_empty.default"
SUMS = "add.Tensor add.Scalar sub.Scalar"
SCALED = "mul.Scalar div.Scalar neg.default rsub.Scalar"
COPIES = "copy.default"
OTHERS = {*" ".join((VIEWS, FILLS, NO_WORK, SUMS, SCALED, COPIES)).split()}
MAPS = " ".join(op for op in ELEMENTWISE.split() if op not in OTHERS)

COSTS: tuple[Cost, ...] = (
    # views, copies, tensors from nothing
    Cost(memory.copied, memory.unviewed, VIEWS, "view"),
    Cost(memory.nothing, memory.nothing, NO_WORK),
    Cost(memory.made, memory.nothing, FILLS),
    Cost(memory.touched, memory.scaled, "clone.default _to_copy.default lift_fresh_copy.default", "like"),
    Cost(memory.touched, memory.scaled, "view_copy.default"),
    Cost(memory.copied_second, memory.scaled, COPIES),
    # elementwise
    Cost(memory.touched, memory.passed, SUMS, "like"),
    Cost(memory.touched, memory.passed_negative, "sub.Tensor", "like"),
    Cost(memory.touched, memory.scaled, SCALED, "like"),
    Cost(memory.touched, memory.mapped, "mul.Tensor div.Tensor true_divide.Tensor prelu.default", "like"),
    Cost(memory.touched, memory.mapped, MAPS, "like"),
    # matrix products
    Cost(products.linear, products.linear_back, "linear.default"),
    Cost(
        products.linear, products.linear_now, "linear_later.default", namespace="plancc",
        late=products.linear_late,
    ),
    Cost(
        products.matmul, products.matmul_back,
        "matmul.default mm.default bmm.default mv.default dot.default vdot.default",
    ),
    Cost(products.addmm, products.addmm_back, "addmm.default baddbmm.default"),
    Cost(products.einsum, products.einsum_back, "einsum.default"),
    Cost(
        products.convolution, products.convolution_back,
        "conv1d.default conv2d.default conv3d.default conv1d.padding conv2d.padding conv3d.padding "
        "convolution.default",
    ),
    Cost(memory.touched, memory.mapped, "outer.default ger.default"),
    # attention, experts, caches
    Cost(attention.attention, attention.attention_back, "attention.default", "first", "plancc"),
    Cost(
        attention.attention, memory.nothing, "attention_over_keys.default", "first", "plancc"
    ),
    Cost(
        attention.backward_call, memory.nothing, "attention_over_keys_backward.default",
        namespace="plancc",
    ),
    Cost(
        attention.attention, attention.attention_back, "scaled_dot_product_attention.default", "first"
    ),
    Cost(
        experts.experts, experts.experts_back, "experts.default placed_experts.default",
        namespace="plancc",
    ),
    Cost(memory.touched, memory.nothing, "route.default", namespace="plancc"),
    Cost(memory.nothing, memory.nothing, "seats.default", namespace="plancc"),
    Cost(memory.appended, memory.nothing, "cache_append.default", namespace="plancc"),
    # look-ups
    Cost(
        memory.looked_up, memory.scattered,
        "embedding.default index.Tensor index_select.default gather.default",
    ),
    Cost(memory.looked_up_shard, memory.scattered, "embedding_shard.default", namespace="plancc"),
    # losses
    Cost(
        memory.log_probabilities, memory.softmax_again, "cross_entropy.default", namespace="plancc"
    ),
    Cost(memory.log_sums, memory.softmax_again, "cross_entropy_shard.default", namespace="plancc"),
    Cost(memory.log_probabilities, memory.softmax_again, "cross_entropy_loss.default"),
    Cost(memory.targeted, memory.scattered, "nll_loss_nd.default nll_loss.default"),
    Cost(
        memory.touched, memory.mapped, "joined_nll.default joined_rows_backward.default",
        namespace="plancc",
    ),
    Cost(memory.made, memory.nothing, "seed.default", namespace="plancc"),
    # reductions, normalisations, scans
    Cost(memory.touched, memory.nothing, "sum.default sum.dim_IntList"),
    Cost(memory.touched, memory.scaled, "mean.default mean.dim"),
    Cost(memory.touched, memory.scaled, "partial_mean.default", namespace="plancc"),
    Cost(
        memory.touched, memory.reread,
        "softmax.int _softmax.default log_softmax.int _log_softmax.default "
        "cumsum.default cumprod.default cummax.default cummin.default logcumsumexp.default "
        "sort.default sort.stable argsort.default argsort.stable flip.default roll.default "
        "amax.default amin.default max.dim min.dim max.default min.default argmax.default "
        "argmin.default any.default any.dim any.dims all.default all.dim all.dims prod.default "
        "prod.dim_int var.dim var.correction var_mean.correction std.dim std.correction "
        "logsumexp.default linalg_vector_norm.default norm.ScalarOpt_dim count_nonzero.default "
        "count_nonzero.dim_IntList median.dim topk.default diff.default pad.default "
        "constant_pad_nd.default layer_norm.default rms_norm.default native_layer_norm.default "
        "_fused_rms_norm.default group_norm.default batch_norm.default triu.default tril.default",
    ),
    # what takes rows apart and puts them together
    Cost(memory.touched, memory.nothing, "cat.default concat.default stack.default"),
    Cost(
        memory.touched, memory.scaled,
        "repeat.default tile.default repeat_interleave.self_int",
    ),
    Cost(
        memory.touched, memory.reread,
        "scatter.src scatter.value scatter.reduce scatter_add.default index_add.default "
        "index_copy.default index_put.default masked_scatter.default slice_scatter.default "
        "select_scatter.default",
    ),
    Cost(
        memory.touched, memory.nothing,
        "one_hot.default bucketize.Tensor searchsorted.Tensor isin.Tensor_Tensor "
        "meshgrid.default meshgrid.indexing",
    ),
    # pictures
    Cost(
        memory.touched, memory.reread,
        "max_pool1d.default max_pool2d.default avg_pool1d.default avg_pool2d.default "
        "adaptive_avg_pool1d.default adaptive_avg_pool2d.default _adaptive_avg_pool2d.default "
        "upsample_bilinear2d.default upsample_bilinear2d.vec upsample_bicubic2d.default "
        "upsample_bicubic2d.vec upsample_nearest2d.default upsample_nearest2d.vec",
    ),
    # instructions that are no calls
    Cost(memory.added, memory.nothing, "add", namespace="step"),
    Cost(memory.touched, memory.nothing, "copy", namespace="step"),
    Cost(memory.emptied, memory.nothing, "once", namespace="step"),
    Cost(memory.share, memory.nothing, "shard", "share", "step"),
    Cost(memory.packed, memory.nothing, "pack", namespace="step"),
    Cost(memory.merged, memory.nothing, "merge", namespace="step"),
)  # fmt: skip


BY_TARGET = by_target(COSTS)
USERS = Cost(rows.user_forward, rows.user_backward, "")
"""The cost of every operator that a user registered: what its row says."""


def cost_of(target: str) -> Cost | None:
    """The row of an operator overload; a user's counts for every overload."""
    found = BY_TARGET.get(target)
    return USERS if found is None and target.rpartition(".")[0] in USER_ROWS else found
