"""One suite for every attention kernel that is present; the others are skipped with the reason.

Random attentions, cut into blocks over p ranks, are measured against a float64 oracle.
"""

from __future__ import annotations

import pytest
import torch
from attention_oracle import (
    NEG_INF,
    Case,
    close,
    close_lse,
    gradients,
    leaves,
    oracle,
    rows_at,
    single,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from plancc.ops.blocks import (
    Block,
    Options,
    attend_block,
    attend_blocks,
    attend_ranges,
    block_backward,
    block_ranges,
    ranges_backward,
    zigzag_ranges,
)
from plancc.ops.kernels import Kernel, available
from plancc.ops.kernels.kernel import LN2
from plancc.ops.merge import add_sinks, merge, sink_backward

GRADIENT_ULPS = 3  # of halves: dq is rounded once for each block
RANDOM = settings(max_examples=200, deadline=None, derandomize=True)


def device_of(kernel: Kernel) -> str:
    return kernel.devices[0] if kernel.devices else "cpu"


@pytest.fixture(
    params=[
        pytest.param(
            presence.kernel,
            id=presence.kernel.name,
            marks=[pytest.mark.skip(reason=presence.missing)] if presence.missing else [],
        )
        for presence in available()
    ],
    scope="module",
)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Every kernel there is; missing ones are skipped."""
    return request.param


@st.composite
def cases(draw: st.DrawFn) -> tuple[Case, int, str]:
    """A random attention without a dtype yet, p ranks and a layout of its keys."""
    n, p = draw(st.integers(0, 23)), draw(st.integers(1, 8))
    kv_heads, groups, batch = (draw(st.integers(1, most)) for most in (3, 3, 2))
    d, dv = draw(st.sampled_from([(8, 8), (3, 3), (1, 1), (16, 16), (8, 4), (5, 12)]))
    layout = draw(st.sampled_from(["block", "zigzag"]))
    kind = draw(st.sampled_from(["all", "suffix", "decode", "rank"]))
    queries: tuple[range, ...] = (range(n),)
    if kind == "suffix":
        queries = (range(draw(st.integers(0, n)), n),)
    elif kind == "decode":
        queries = (range(max(0, n - 1), n),)
    elif kind == "rank":
        queries = zigzag_ranges(n, p, draw(st.integers(0, p - 1)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    tq, heads = sum(map(len, queries)), kv_heads * groups

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    mask = None
    if draw(st.integers(0, 3)) == 0:
        shape = (draw(st.sampled_from([1, batch])), draw(st.sampled_from([1, heads])), tq, n)
        mask = random(*shape)
        mask[torch.rand(shape, generator=generator) < draw(st.sampled_from([0.0, 0.3]))] = NEG_INF
        if tq:
            mask[:, :, draw(st.integers(0, tq - 1))] = NEG_INF
    case = Case(
        random(batch, heads, tq, d),
        random(batch, kv_heads, n, d),
        random(batch, kv_heads, n, dv),
        queries,
        causal=draw(st.booleans()),
        window=draw(st.sampled_from([0, 0, 1, 2, 5, 30])),
        softcap=draw(st.sampled_from([0.0, 0.0, 0.0, 1.5])),
        mask=mask,
        sinks=random(heads) if draw(st.integers(0, 3)) == 0 else None,
    )
    return case, p, layout


def typed(case: Case, dtype: torch.dtype, device: str) -> Case:
    """The case with its tensors rounded to a dtype, on a device."""
    moved = [None if x is None else x.to(device, dtype) for x in (
        case.q, case.k, case.v, case.mask, case.sinks)]  # fmt: skip
    return Case(*moved[:3], case.queries, case.causal, case.window, case.softcap, *moved[3:])


def cut(case: Case, p: int, layout: str) -> list[Block]:
    """The keys of the case as blocks of p ranks."""
    n, split = case.k.shape[2], zigzag_ranges if layout == "zigzag" else block_ranges
    return [
        Block(
            rows_at(case.k, spans),
            rows_at(case.v, spans),
            spans,
            mask=None if case.mask is None else rows_at(case.mask, spans, 3),
        )
        for spans in (split(n, p, rank) for rank in range(p))
    ]


def options_of(case: Case, kernel: Kernel) -> Options:
    return Options(case.scale, case.causal, case.window, case.softcap, kernel)


def unmet(case: Case, kernel: Kernel) -> bool:
    """True if the kernel lacks what the case as a whole may need."""
    return kernel.lacks(device_of(kernel), case.q.dtype, **case.needs) is not None


@RANDOM
@given(drawn=cases(), data=st.data())
def test_merged_blocks_equal_the_oracle(kernel: Kernel, drawn: tuple, data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from(kernel.dtypes))
    case, p, layout = typed(drawn[0], dtype, device_of(kernel)), *drawn[1:]
    if unmet(case, kernel):
        return
    options = options_of(case, kernel)
    parts = [attend_ranges(case.q, case.queries, block, options) for block in cut(case, p, layout)]
    out, lse = merge(parts)
    if case.sinks is not None:
        out, lse = add_sinks(out, lse, case.sinks)
    want, want_lse = oracle(case)
    assert out.dtype == dtype and lse.dtype == torch.promote_types(dtype, torch.float32)
    close(out, want, alone=single(case))
    close_lse(lse, want_lse, dtype)


@RANDOM
@given(drawn=cases(), data=st.data())
def test_gradients_through_merged_blocks(kernel: Kernel, drawn: tuple, data: st.DataObject) -> None:
    if not kernel.supports_backward:
        pytest.skip("no backward")
    dtype = data.draw(st.sampled_from(kernel.dtypes))
    case, p, layout = typed(drawn[0], dtype, device_of(kernel)), *drawn[1:]
    if unmet(case, kernel):
        return
    dout = torch.randn(*case.q.shape[:3], case.v.shape[3], generator=torch.Generator(
        ).manual_seed(p), dtype=torch.float64).to(case.q)  # fmt: skip
    free = [x.requires_grad_() for x in leaves(case)]
    blocks = cut(case, p, layout)
    out, lse = attend_blocks(
        case.q, blocks, scale=case.scale, q_ranges=case.queries, causal=case.causal,
        window=case.window, softcap=case.softcap, sinks=case.sinks, kernel=kernel,
    )  # fmt: skip
    assert not lse.requires_grad
    got = torch.autograd.grad(out, free, dout, allow_unused=True)
    alone = torch.autograd.grad(single(case), free, dout, allow_unused=True)
    for grad, near, want in zip(got, alone, gradients(case, dout), strict=True):
        if want is not None:
            close(
                grad, want, alone=want.to(grad.dtype) if near is None else near, ulps=GRADIENT_ULPS
            )


@RANDOM
@given(drawn=cases(), data=st.data())
def test_ranks_with_their_own_queries(kernel: Kernel, drawn: tuple, data: st.DataObject) -> None:
    """Each rank holds a zigzag of queries and keys; sums and merges equal the contiguous result."""
    if not kernel.supports_backward:
        pytest.skip("no backward")
    case, p, layout = typed(drawn[0], kernel.dtypes[0], device_of(kernel)), *drawn[1:]
    if unmet(case, kernel) or case.queries != (range(case.k.shape[2]),):
        return
    n, split = case.k.shape[2], zigzag_ranges if layout == "zigzag" else block_ranges
    options, blocks = options_of(case, kernel), cut(case, p, layout)
    want, _ = oracle(case)
    dout = torch.ones_like(want).to(case.q.dtype)
    order = [i for rank in range(p) for span in split(n, p, rank) for i in span]
    back = torch.tensor(order, dtype=torch.long).argsort()
    outs, dqs, dsinks = [], [], []
    dk, dv = ([torch.zeros_like(x, dtype=torch.float64) for x in both]
              for both in zip(*((b.k, b.v) for b in blocks), strict=True))  # fmt: skip
    for rank in range(p):
        spans = split(n, p, rank)
        q, mine = rows_at(case.q, spans), rows_at(dout, spans)
        seen = [
            Block(b.k, b.v, b.ranges, mask=None if b.mask is None else rows_at(b.mask, spans))
            for b in blocks
        ]
        out, lse = merge([attend_ranges(q, spans, block, options) for block in seen])
        if case.sinks is not None:
            out, lse = add_sinks(out, lse, case.sinks)
            dsinks.append(sink_backward(mine, out, lse, case.sinks))
        done = [ranges_backward(mine, out, lse, q, spans, block, options) for block in seen]
        outs.append(out)
        dqs.append(sum(dq.double() for dq, _, _ in done))
        for i, (_, more_k, more_v) in enumerate(done):
            dk[i] += more_k
            dv[i] += more_v
    close(torch.cat(outs, 2)[:, :, back], want, alone=single(case))
    got = [torch.cat(x, 2)[:, :, back] for x in (dqs, dk, dv)]
    if case.sinks is not None:
        got.append(sum(dsinks))
    free = [x.requires_grad_() for x in leaves(case)]
    alone = torch.autograd.grad(single(case), free, dout, allow_unused=True)
    for grad, near, exact in zip(got, alone, gradients(case, dout), strict=True):
        if exact is not None:
            close(
                grad,
                exact,
                alone=exact.to(grad.dtype) if near is None else near,
                ulps=GRADIENT_ULPS,
            )


def plain(kernel: Kernel, n: int, tq: int, **more: object) -> Case:
    """A small case of the kernel's first dtype: tq queries at the end of n keys, 4 heads on 2."""
    generator = torch.Generator().manual_seed(n + tq)
    shapes = ((2, 4, tq, 8), (2, 2, n, 8), (2, 2, n, 8))
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    case = Case(q, k, v, (range(n - tq, n),), **{"causal": True, **more})
    return typed(case, kernel.dtypes[0], device_of(kernel))


def test_empty_blocks_give_nothing(kernel: Kernel) -> None:
    for tq, tk in ((5, 0), (0, 5), (0, 0)):
        q, k = plain(kernel, 5, 5).q[:, :, :tq], plain(kernel, 5, 5).k[:, :, :tk]
        out, lse = kernel.forward(q, k, k, scale=1.0)
        assert out.shape == q.shape and (out == 0).all() and (lse == NEG_INF).all()
        if kernel.supports_backward:
            grads = kernel.backward(out, out, lse, q, k, k, scale=1.0)
            assert all((grad == 0).all() for grad in grads)
    if kernel.supports_empty:
        case = plain(kernel, 5, 5)
        out, lse = kernel.run(case.q, case.k[:, :, :0], case.v[:, :, :0], None, False, 1.0, 0.0)
        assert (out == 0).all() and (lse == NEG_INF).all()


def test_fewer_keys_than_ranks(kernel: Kernel) -> None:
    case = plain(kernel, 3, 1)
    blocks = cut(case, 8, "block")
    assert [block.k.shape[2] for block in blocks] == [1, 1, 1, 0, 0, 0, 0, 0]
    options = options_of(case, kernel)
    out, _ = merge([attend_ranges(case.q, case.queries, block, options) for block in blocks])
    close(out, oracle(case)[0], alone=single(case))


def test_causal_is_aligned_by_position_not_by_corner(kernel: Kernel) -> None:
    """Sq != Sk: an is_causal that aligns upper left would show one key instead of six."""
    case = plain(kernel, 6, 1)
    out, _ = attend_block(
        case.q, case.k, case.v, scale=0.3, q_start=5, k_start=0, causal=True, kernel=kernel
    )
    close(out, oracle(case)[0], alone=single(case))
    ahead = attend_block(
        case.q, case.k, case.v, scale=0.3, q_start=5, k_start=6, causal=True, kernel=kernel
    )
    assert (ahead[0] == 0).all() and (ahead[1] == NEG_INF).all()
    with pytest.raises(ValueError, match="causal square"):
        kernel.forward(case.q, case.k, case.v, scale=0.3, causal_square=True)


def test_natural_log(kernel: Kernel) -> None:
    """Zero queries make lse the natural log of the number of keys, whatever the base inside."""
    case = plain(kernel, 8, 8)
    _, lse = kernel.forward(torch.zeros_like(case.q), case.k, case.v, scale=0.3)
    assert torch.allclose(lse, torch.full_like(lse, 3 * LN2), atol=1e-5)


def test_strides_are_respected(kernel: Kernel) -> None:
    """The head dim of a transposed view is not contiguous: torch's CPU flash ignores that."""
    case = plain(kernel, 8, 8, causal=False)
    q, k, v = (x.mT.contiguous().mT for x in (case.q, case.k, case.v))
    out, lse = kernel.forward(q, k, v, scale=0.3)
    close(out, oracle(case)[0], alone=single(case))
    if kernel.supports_backward:
        dout = torch.ones_like(out)
        got = kernel.backward(dout.expand_as(out), out, lse, q, k, v, scale=0.3)
        free = [x.requires_grad_() for x in leaves(case)]
        alone = torch.autograd.grad(single(case), free, dout)
        for grad, near, want in zip(got, alone, gradients(case, dout), strict=True):
            close(grad, want, alone=near, ulps=GRADIENT_ULPS)


def test_rows_that_see_nothing(kernel: Kernel) -> None:
    """Masked everywhere, by -inf or by the lowest finite number, in one block or in all."""
    if not kernel.supports_mask:
        pytest.skip("takes no mask")
    case = plain(kernel, 6, 6, causal=False)
    lowest = torch.finfo(case.q.dtype).min
    for hidden in (NEG_INF, lowest, False):
        mask = torch.zeros(6, 6, dtype=case.q.dtype, device=case.q.device)
        mask[2], mask[4, :3], mask[5, 3:] = NEG_INF, NEG_INF, NEG_INF
        exact = Case(case.q, case.k, case.v, case.queries, False, mask=mask[None, None])
        own = mask == 0 if hidden is False else mask.masked_fill(mask == NEG_INF, hidden)
        parts = [
            attend_block(
                case.q, case.k[:, :, a:b], case.v[:, :, a:b], scale=0.3, q_start=0, k_start=a,
                causal=False, mask=own[:, a:b], kernel=kernel,
            )
            for a, b in ((0, 3), (3, 6))
        ]  # fmt: skip
        assert (parts[0][1][:, :, [2, 4]] == NEG_INF).all() and (parts[0][0][:, :, 4] == 0).all()
        out, lse = merge(parts)
        want, want_lse = oracle(exact)
        close(out, want, alone=single(exact))
        close_lse(lse, want_lse, case.q.dtype)


def test_long_blocks_with_masked_tiles(kernel: Kernel) -> None:
    """More keys than a kernel's tile, whole tiles hidden, windows in several chunks of rows."""
    generator = torch.Generator().manual_seed(5)
    q, k, v = (torch.randn(1, heads, 1200, 8, generator=generator) for heads in (2, 1, 1))
    for window in (0, 700, 300):
        case = typed(
            Case(q, k, v, (range(1200),), True, window), kernel.dtypes[0], device_of(kernel)
        )
        if unmet(case, kernel):
            continue
        options, blocks = options_of(case, kernel), cut(case, 3, "zigzag")
        out, _ = merge([attend_ranges(case.q, case.queries, b, options) for b in blocks])
        close(out, oracle(case)[0], alone=single(case))


def test_keys_at_explicit_positions(kernel: Kernel) -> None:
    """A cache appended round robin: keys of a rank lie apart, and some of its slots are empty."""
    case = plain(kernel, 11, 2, causal=True)
    parts = []
    for rank in range(3):
        held = torch.arange(rank, 11, 3)
        k, v = case.k[:, :, held], case.v[:, :, held]
        if kernel.supports_mask:
            k, v = (torch.cat((x, x[:, :, :1]), 2) for x in (k, v))
            held = torch.cat((held, torch.tensor([-1])))
        elif (held > 9).any():
            pytest.skip("takes no mask")
        held = held if rank else held.expand(2, -1)
        parts.append(
            attend_block(
                case.q, k, v, scale=0.3, q_start=9, k_start=0, causal=True, k_positions=held,
                kernel=kernel,
            )
        )  # fmt: skip
    close(merge(parts)[0], oracle(case)[0], alone=single(case))


def test_a_decoded_block_backward_with_merged_results(kernel: Kernel) -> None:
    if not kernel.supports_backward:
        pytest.skip("no backward")
    case = plain(kernel, 9, 4)
    cuts, shared = ((0, 6), (6, 9)), {"scale": 0.3, "q_start": 5, "causal": True, "kernel": kernel}
    held = [(a, case.k[:, :, a:b], case.v[:, :, a:b]) for a, b in cuts]
    out, lse = merge([attend_block(case.q, k, v, k_start=a, **shared) for a, k, v in held])
    dout = torch.ones_like(out)
    done = [block_backward(dout, out, lse, case.q, k, v, k_start=a, **shared) for a, k, v in held]
    free = [x.requires_grad_() for x in leaves(case)]
    alone = torch.autograd.grad(single(case), free, dout)
    got = [sum(part[0] for part in done), *(torch.cat([p[i] for p in done], 2) for i in (1, 2))]
    for grad, near, want in zip(got, alone, gradients(case, dout), strict=True):
        close(grad, want, alone=near, ulps=GRADIENT_ULPS)
