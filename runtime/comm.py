"""The verbs of emitted programs: moves between layouts, on top of any transport.

A verb works out from the Dims which indices each peer holds, and makes one native collective of it, for
every group size, uneven parts and fused dims (`heads*hd + heads*hd`) included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from plancc.runtime import hierarchy, packed
from plancc.runtime.dims import Dim, Ranges, length, within
from plancc.runtime.matching import Routes, find_routes, kept_heads, pieces_of
from plancc.runtime.pieces import cut, join, put, resized, take
from plancc.runtime.routes import Arrivals, Route, added, find_route, senders
from plancc.runtime.transport import Transport
from plancc.runtime.view import Members, Peers, View
from plancc.runtime.wires import Wires, message_bytes, opened, scattered_sums, sums_of

Parts = "str | tuple[str, ...]"


class Comm:
    """Communication of one rank.

    `at` is the instruction number in its program, for beacons and messages; `base` tells programs apart.
    """

    def __init__(self, transport: Transport, view: View) -> None:
        self.transport = transport
        self.view = view
        self.base = 0
        self._starter: Any = None
        self.wires = Wires()
        self._cache: dict[
            Any, Any
        ] = {}  # emptied when it grows: tables of owners change every step

    @property
    def start(self) -> Any:
        """The verbs that start a move beside the computation and return a handle (`plancc.runtime.lane`)."""
        if self._starter is None:
            from plancc.runtime.lane import open_starter

            self._starter = open_starter(self.transport, self.view, self.base)
            self._starter.comm.wires = self.wires
        self._starter.comm.base = self.base
        return self._starter

    def all_reduce(self, x: Tensor, parts: Parts, at: int) -> Tensor:
        """The sum of `x` over the ranks along `parts`: node by node where they span several."""
        group = self.view.peers(self.view.parts(parts)).group
        if hierarchy.pays(group, self.view.nodes, x.nbytes):
            return hierarchy.all_reduce(self.transport, x, group, self.view.nodes, at + self.base)
        return self.transport.all_reduce(x, group, at + self.base)

    def all_gather(self, x: Tensor, dim: int, d: Dim, parts: Parts, at: int) -> Tensor:
        """Make dim `dim` (local Dim `d`) whole along `parts`."""
        peers = self.view.peers(self.view.parts(parts))
        frame, pieces = self._pieces(d, peers)
        shapes = [resized(x, dim, length(p)) for p in pieces]
        found = self._in_order(
            peers, shapes, lambda s: self.transport.all_gather(x, peers.group, s, at + self.base)
        )
        return join(found, dim, frame, pieces)

    def reduce_scatter(self, x: Tensor, dim: int, d: Dim, parts: Parts, at: int) -> Tensor:
        """Sum `x` over the ranks along `parts` and keep this rank's share of `dim` (`d`: after)."""
        peers = self.view.peers(self.view.parts(parts))
        frame, pieces = self._pieces(d, peers)
        shares = [take(x, dim, within(frame, p)) for p in pieces]
        order = [shares[peers.ranks.index(rank)] for rank in peers.group]
        return self.transport.reduce_scatter(order, peers.group, at + self.base)

    def all_to_all(
        self, x: Tensor, dim: int, d: Dim, to_dim: int, to: Dim, parts: Parts, at: int
    ) -> Tensor:
        """Make `dim` (`d`: before) whole and cut `to_dim` (`to`: after) along the same parts."""
        peers = self.view.peers(self.view.parts(parts))
        frame, pieces = self._pieces(d, peers)
        to_frame, to_pieces = self._pieces(to, peers)
        out = [take(x, to_dim, within(to_frame, p)) for p in to_pieces]
        kept = resized(x, to_dim, int(to))
        shapes = [(*kept[:dim], length(p), *kept[dim + 1 :]) for p in pieces]
        order = [out[peers.ranks.index(rank)] for rank in peers.group]
        found = self._in_order(
            peers,
            shapes,
            lambda s: self.transport.all_to_all(order, peers.group, s, at + self.base),
        )
        return join(found, dim, frame, pieces)

    def merge(
        self, out: Tensor, rows: Tensor, heads: Dim, parts: Parts, spread: Parts, at: int
    ) -> tuple[Tensor, Tensor]:
        """Merge partial attention (out [B, H, T, D], logsumexp rows [B, H, T]) over the ranks along `parts`.

        Each rank merges and keeps the share of the heads that `spread` (factors of `parts`) gives it;
        without `spread` (a single head) all of them.
        """
        from plancc.ops.merge import merge

        group = self.view.peers(self.view.parts(parts)).group
        keepers = self.view.parts(spread) if spread else ()
        key = ("kept", group, out.shape[1], heads.key, keepers)
        if key not in self._cache:
            self._cache[key] = kept_heads(self.view, group, out.shape[1], heads, keepers)
        share = self._cache[key]
        wide = rows.unsqueeze(-1).to(torch.promote_types(out.dtype, rows.dtype))
        both = torch.cat([out.to(wide.dtype), wide], -1)
        shape = resized(both, 1, length(share[self.view.rank]))
        found = self.transport.all_to_all(
            [take(both, 1, share[rank]) for rank in group], group, [shape] * len(group),
            at + self.base,
        )  # fmt: skip
        merged, total = merge([(piece[..., :-1], piece[..., -1]) for piece in found])
        return merged.to(out.dtype), total.to(rows.dtype)

    def join_rows(self, pair: Tensor, parts: Parts, at: int) -> Tensor:
        """Join (logsumexp, target's logit) [..., 2] of the columns that the ranks along `parts` hold."""
        group = self.view.peers(self.view.parts(parts)).group
        shapes = [tuple(pair.shape)] * len(group)
        both = torch.stack(self.transport.all_gather(pair, group, shapes, at + self.base))
        return torch.stack([both[..., 0].logsumexp(0), both[..., 1].sum(0)], -1)

    def all_reduce_bucket(
        self, xs: Sequence[Tensor], parts: Parts, *, wire: str = "", at: int
    ) -> tuple[Tensor, ...]:
        """`all_reduce` of several tensors at once; they travel as `wire`."""
        group = self.view.peers(self.view.parts(parts)).group
        if not self._lossy(wire, group):
            return packed.all_reduce(self.transport, xs, group, at + self.base, self.view.nodes)
        return sums_of(self.transport, self.wires, wire, xs, group, at + self.base)

    def reduce_scatter_bucket(
        self, xs: Sequence[Tensor], dims: Sequence[tuple[int, Dim]], parts: Parts, *,
        wire: str = "", at: int,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """`reduce_scatter` of several tensors at once, each along its own (dim, Dim after)."""
        peers = self.view.peers(self.view.parts(parts))
        cuts = [self._pieces(d, peers) for _, d in dims]
        spots = [
            [(dim, within(frame, p)) for p in pieces]
            for (dim, _), (frame, pieces) in zip(dims, cuts, strict=True)
        ]
        if not self._lossy(wire, peers.group):
            return packed.reduce_scatter(self.transport, xs, spots, peers, at + self.base)
        shares = packed.pieces_of(xs, spots, peers)
        return scattered_sums(self.transport, self.wires, wire, shares, peers.group, at + self.base)

    def _lossy(self, wire: str, group: Sequence[int]) -> bool:
        """Whether a sum travels in another type: not where results are to be exact."""
        return bool(wire) and not self.view.exact and len(group) > 1

    def all_gather_bucket(
        self, xs: Sequence[Tensor], dims: Sequence[tuple[int, Dim]], parts: Parts, at: int
    ) -> tuple[Tensor, ...]:
        """`all_gather` of several tensors at once, each along its own (dim, Dim before)."""
        peers = self.view.peers(self.view.parts(parts))
        cuts = [(dim, *self._pieces(d, peers)) for dim, d in dims]
        return packed.all_gather(self.transport, xs, cuts, peers, at + self.base)

    def shard(self, x: Tensor, dim: int, d: Dim, parts: Parts) -> Tensor:
        """Keep this rank's share of a dim that is whole along `parts`; nothing is sent."""
        chosen = self.view.parts(parts)
        frame, _ = self._pieces(d, self.view.peers(chosen))
        mine = d.ranges(self.view.coord_of(self.view.rank))
        return take(x, dim, within(frame, mine))

    def once(self, x: Tensor, parts: Parts) -> Tensor:
        """`x` on the first rank along `parts`, zeros on the others: a replicated addend of a sum."""
        first = all(self.view.index(self.view.rank, p) == 0 for p in self.view.parts(parts))
        return x if first else torch.zeros_like(x)

    def route(
        self, index: Tensor, weight: Tensor, source: Members, target: Members, experts: Dim,
        parts: Sequence[str], at: int,
    ) -> Route:  # fmt: skip
        """Which of this rank's tokens go to which ranks of experts; `index` [t, k] are the chosen ones."""
        self.transport.set_position(at + self.base)
        chosen = self.view.parts(tuple(parts))
        return find_route(self.view, index, weight, source, target, experts, chosen)

    def announce(self, route: Route, *, channel: int = 0, wire: str = "", at: int) -> None:
        """Tell every rank of experts how many rows it will get."""
        counts = [(rank, torch.tensor([len(rows)])) for rank, rows in route.rows]
        given = [(rank, count.to(self.view.device)) for rank, count in counts]
        self._exchange(given, [], at, channel, wire)

    def arrivals(
        self,
        source: Members,
        target: Members,
        parts: Sequence[str],
        *,
        channel: int = 0,
        wire: str = "",
        at: int,
    ) -> Arrivals:
        """How many rows come from which rank."""
        key = ("senders", source.ranks, target.ranks, tuple(parts))
        if key not in self._cache:
            chosen = self.view.parts(tuple(parts))
            self._cache[key] = senders(self.view, source, target, chosen)
        ranks = self._cache[key]
        wanted = [(rank, (1,), torch.int64) for rank in ranks]
        found = self._exchange([], wanted, at, channel, wire)
        return Arrivals(tuple((r, int(n)) for r, n in zip(ranks, found, strict=True)))

    def dispatch(
        self, x: Tensor, route: Route, *, channel: int = 0, wire: str = "", at: int
    ) -> None:
        """Send the rows of `x` [t, ...] to the ranks of their experts."""
        given = [(rank, x.index_select(0, rows)) for rank, rows in route.rows]
        self._exchange(given, [], at, channel, wire)

    def collect(
        self, dtype: torch.dtype, tail: Sequence[int], arrivals: Arrivals, *, channel: int = 0,
        wire: str = "", at: int,
    ) -> Tensor:  # fmt: skip
        """Receive rows [n, *tail], those of the lowest source first."""
        wanted = [(rank, (count, *tail), dtype) for rank, count in arrivals.counts]
        found = self._exchange([], wanted, at, channel, wire)
        if not found:  # a copy of the experts to which no source turns
            return torch.empty((0, *tail), dtype=dtype, device=self.view.device)
        return torch.cat(found)

    def give_back(
        self, y: Tensor, arrivals: Arrivals, *, channel: int = 0, wire: str = "", at: int
    ) -> None:
        """Send the results of received rows back to where they came from."""
        pieces = y.split([count for _, count in arrivals.counts])
        given = [(rank, piece) for (rank, _), piece in zip(arrivals.counts, pieces, strict=True)]
        self._exchange(given, [], at, channel, wire)

    def combine(
        self,
        dtype: torch.dtype,
        tail: Sequence[int],
        route: Route,
        *,
        channel: int = 0,
        wire: str = "",
        at: int,
    ) -> Tensor:
        """Receive the results of this rank's rows and sum them: [t, *tail]."""
        wanted = [(rank, (len(rows), *tail), dtype) for rank, rows in route.rows]
        found = self._exchange([], wanted, at, channel, wire)
        pairs = [(rows, x) for (_, rows), x in zip(route.rows, found, strict=True)]
        return added(route.tokens, tail, pairs)

    def _exchange(
        self, sends: Sequence[tuple[int, Tensor]],
        recvs: Sequence[tuple[int, tuple[int, ...], torch.dtype]], at: int, channel: int, wire: str,
    ) -> list[Tensor]:  # fmt: skip
        """Send and receive, in a wire type; what a rank gives itself stays as it is."""
        place, own = at + self.base, self.view.rank
        if not wire or self.view.exact:
            return self.transport.exchange(sends, recvs, place, channel)
        given = [
            (rank, x if rank == own else self.wires.message(wire, f"{place} to {rank}", x))
            for rank, x in sends
        ]
        wanted = [
            one if one[0] == own else (one[0], (message_bytes(wire, one[1]),), torch.uint8)
            for one in recvs
        ]
        found = self.transport.exchange(given, wanted, place, channel)
        return [
            x if rank == own else opened(wire, x, shape, dtype)
            for x, (rank, shape, dtype) in zip(found, recvs, strict=True)
        ]

    def send(
        self, x: Tensor, source: Members, has: Sequence[Dim], target: Members,
        wants: Sequence[Dim], at: int, channel: int = 0, wire: str = "",
    ) -> None:  # fmt: skip
        """Send this rank's part of a value to the ranks of `target` that want it."""
        routes = self._routes(source, has, target, wants)
        self._exchange(self._outgoing(x, routes), [], at, channel, wire)

    def recv(
        self, dtype: torch.dtype, source: Members, has: Sequence[Dim], target: Members,
        wants: Sequence[Dim], at: int, channel: int = 0, wire: str = "",
    ) -> Tensor:  # fmt: skip
        """Receive what this rank wants of a value that the ranks of `source` hold."""
        routes = self._routes(source, has, target, wants)
        return self._incoming(None, dtype, routes, [], at, channel, wire)

    def transfer(
        self, x: Tensor, source: Members, has: Sequence[Dim], target: Members,
        wants: Sequence[Dim], at: int, channel: int = 0, wire: str = "",
    ) -> Tensor:  # fmt: skip
        """Send and receive, on a rank of both stages."""
        routes = self._routes(source, has, target, wants)
        return self._incoming(x, x.dtype, routes, self._outgoing(x, routes), at, channel, wire)

    def _outgoing(self, x: Tensor, routes: Routes) -> list[tuple[int, Tensor]]:
        return [(rank, cut(x, spots)) for rank, spots in routes.sends]

    def _incoming(
        self, x: Tensor | None, dtype: torch.dtype, routes: Routes, sends: list, at: int,
        channel: int, wire: str,
    ) -> Tensor:  # fmt: skip
        wanted = [(r, tuple(length(s) for s in spots), dtype) for r, spots in routes.recvs]
        found = self._exchange(sends, wanted, at, channel, wire)
        if len(found) == 1 and x is None and tuple(found[0].shape) == routes.shape:
            return found[0]
        out = torch.empty(routes.shape, dtype=dtype, device=self.view.device)
        for (_, spots), piece in zip(routes.recvs, found, strict=True):
            put(out, spots, piece)
        if x is not None and routes.local is not None:
            put(out, routes.local[1], cut(x, routes.local[0]))
        return out

    def _in_order(self, peers: Peers, shapes: list, call) -> list[Tensor]:
        """Call with shapes in the sorted order of the group; give results in the order of the peers."""
        found = call([shapes[peers.ranks.index(rank)] for rank in peers.group])
        at = {rank: i for i, rank in enumerate(peers.group)}
        return [found[at[rank]] for rank in peers.ranks]

    def trim(self, most: int = 2000) -> None:
        """Forget what was worked out for past sizes once there is too much of it."""
        if len(self._cache) > most:
            self._cache.clear()

    def _pieces(self, d: Dim, peers: Peers) -> tuple[Ranges, list[Ranges]]:
        """The indices that the peers hold together, and those of each."""
        key = (d.key, peers.parts)
        self.trim()
        if key not in self._cache:
            self._cache[key] = pieces_of(self.view, d, peers)
        return self._cache[key]

    def _routes(
        self, source: Members, has: Sequence[Dim], target: Members, wants: Sequence[Dim]
    ) -> Routes:
        key = (source.ranks, tuple(d.key for d in has), target.ranks, tuple(d.key for d in wants))
        self.trim()
        if key not in self._cache:
            self._cache[key] = find_routes(self.view, source, has, target, wants)
        return self._cache[key]
