"""Timelines made by hand: a pipeline, a step with an attention pool, two halves of a model in turns."""

from __future__ import annotations

import dataclasses
import random

from plancc.simulator.forms import COMMUNICATION, COMPUTE, Actor, Span, Timeline

MS = 1e-3


class Drawing:
    """Puts spans one after the other on each stream."""

    def __init__(self, title: str, actors: list[Actor], predicted: bool = True) -> None:
        self.title, self.actors, self.predicted = title, actors, predicted
        self.spans: list[Span] = []
        self.memory: dict[int, list[tuple[float, int]]] = {n: [] for n in range(len(actors))}
        self.traffic: dict[tuple[int, int], int] = {}
        self._free: dict[tuple[int, str], float] = {}

    def now(self, actor: int, stream: str = COMPUTE) -> float:
        """When a stream of an actor is free."""
        return self._free.get((actor, stream), 0.0)

    def put(
        self, actor: int, name: str, kind: str, seconds: float, *, after: float = 0.0,
        stream: str = COMPUTE, whom: str = "", **facts: object,
    ) -> float:  # fmt: skip
        """A span that begins when its stream is free and not before `after`; its end."""
        free = self.now(actor, stream)
        if after > free and whom:
            place = {k: v for k, v in facts.items() if k in ("path", "line", "batch")}
            self.spans.append(Span(actor, stream, f"wait for {whom}", "wait", free, after, **place))  # type: ignore[arg-type]
        begin = max(free, after)
        self.spans.append(Span(actor, stream, name, kind, begin, begin + seconds, **facts))  # type: ignore[arg-type]
        self._free[actor, stream] = begin + seconds
        return begin + seconds

    def send(self, source: int, target: int, size: int) -> None:
        """Count bytes."""
        self.traffic[source, target] = self.traffic.get((source, target), 0) + size

    def hold(self, actor: int, seconds: float, size: int) -> None:
        """An actor holds so many bytes from then on."""
        self.memory[actor].append((seconds, size))

    def timeline(self) -> Timeline:
        """All of it."""
        memory = {k: tuple(sorted(v)) for k, v in self.memory.items() if v}
        return Timeline(
            self.title, self.predicted, tuple(self.actors), tuple(self.spans), memory, self.traffic
        )


def pipeline(
    stages: int = 4, batches: int = 8, *, predicted: bool = True, seed: int | None = None,
    layers: int = 2, title: str = "pipeline, training step",
) -> Timeline:  # fmt: skip
    """GPipe: forwards, then backwards. With a seed, times are shaken as a machine would."""
    shake = random.Random(seed)
    actors = [Actor(f"base rank {n}", (n,), "base") for n in range(stages)]
    draw = Drawing(title, actors, predicted)

    def time(seconds: float) -> float:
        return seconds * (1 if seed is None else shake.uniform(0.92, 1.3))

    arrived = {(0, b): 0.0 for b in range(batches)}
    for batch in range(batches):
        for stage in range(stages):
            block(draw, stage, batch, time, arrived[stage, batch], layers, stage * layers, 1.0)
            draw.hold(stage, draw.now(stage), (6 + batch + 1) * 10**9)
            if stage + 1 < stages:
                done = draw.put(
                    stage, "send to the next stage", "message", time(0.21 * MS), stream=COMMUNICATION,
                    after=draw.now(stage), path=f"layers.{(stage + 1) * layers}", line="pp4.plan:9",
                    batch=batch, bytes=16_777_216,
                )  # fmt: skip
                arrived[stage + 1, batch] = done
                draw.send(stage, stage + 1, 16_777_216)
    back = {(stages - 1, b): 0.0 for b in range(batches)}
    for batch in reversed(range(batches)):
        for stage in reversed(range(stages)):
            block(draw, stage, batch, time, back[stage, batch], layers, stage * layers, 2.0)
            draw.hold(stage, draw.now(stage), (6 + batch) * 10**9)
            if stage:
                done = draw.put(
                    stage, "send the gradient back", "message", time(0.21 * MS), stream=COMMUNICATION,
                    after=draw.now(stage), path=f"layers.{stage * layers}", line="pp4.plan:9",
                    batch=batch, bytes=16_777_216,
                )  # fmt: skip
                back[stage - 1, batch] = done
                draw.send(stage, stage - 1, 16_777_216)
    return draw.timeline()


def block(draw, actor, batch, time, after, layers, first, factor) -> None:  # type: ignore[no-untyped-def]
    """The layers of a stage for one micro-batch."""
    neighbour = actor - 1 if factor == 1.0 else actor + 1
    for layer in range(first, first + layers):
        for name, kind, seconds, flops, size, leaf in (
            ("aten.rms_norm", "memory", 0.06, 0, 33_554_432, "input_norm"),
            ("aten.linear", "matmul", 0.55, 412_316_860_416, 201_326_592, "self_attn.q_proj"),
            ("plancc.attention", "attention", 0.42, 137_438_953_472, 100_663_296, "self_attn"),
            ("aten.linear", "matmul", 1.1, 824_633_720_832, 369_098_752, "mlp.up_proj"),
        ):
            draw.put(
                actor, name, kind, time(seconds * factor * MS), after=after,
                whom=f"base rank {neighbour}", path=f"layers.{layer}.{leaf}", line="pp4.plan:7",
                batch=batch, flops=int(flops * factor), bytes=int(size * factor),
            )  # fmt: skip
            after = 0.0


def pool(base: int = 8, extra: int = 32, layers: int = 16, predicted: bool = True) -> Timeline:
    """Tensor parallelism on `base` ranks; attention also on a pool of `extra` ranks."""
    actors = [Actor(f"base rank {n}", (n,), "base") for n in range(base)]
    actors += [Actor(f"fa rank {base + n}", (base + n,), "fa") for n in range(extra)]
    draw = Drawing("FA pool, prefill", actors, predicted)
    for rank in range(base + extra):
        draw.hold(rank, 0.0, 12 * 10**9 if rank < base else 3 * 10**9)
    for layer in range(layers):
        at, ready = f"layers.{layer}", 0.0
        for rank in range(base):
            plan = {"path": f"{at}.self_attn.q_proj", "line": "fa_pool.plan:31"}
            draw.put(
                rank,
                "aten.linear",
                "matmul",
                (0.9 + 0.01 * rank) * MS,
                flops=2**38,
                bytes=2**28,
                **plan,
            )
            ready = max(ready, draw.now(rank))
        for rank in range(base):
            for target in range(base, base + extra):
                draw.send(rank, target, 2**20)
        begin = {}
        for rank in range(base + extra):
            stream = COMPUTE
            begin[rank] = draw.put(
                rank, "exchange q", "exchange", 0.12 * MS, after=ready, whom="base rank 7",
                stream=stream, path=f"{at}.self_attn", line="fa_pool.plan:38", bytes=2**25,
            )  # fmt: skip
        slow = 0.0
        for rank in range(base + extra):
            long = (2.1 if rank < base + extra - 4 else 2.6) * MS
            end = draw.put(
                rank, "plancc.attention", "attention", long, flops=2**40, bytes=2**29,
                path=f"{at}.self_attn", line="fa_pool.plan:38",
            )  # fmt: skip
            slow = max(slow, end)
            draw.hold(rank, end, (12 if rank < base else 3) * 10**9 + layer * 2**28)
        for rank in range(base, base + extra):
            last = f"fa rank {base + extra - 1}"
            draw.put(rank, "all_to_all", "all_to_all", 0.3 * MS, after=slow, whom=last,
                     path=f"{at}.self_attn", line="fa_pool.plan:38", bytes=2**24)  # fmt: skip
            for other in range(base, base + extra):
                if other != rank:
                    draw.send(rank, other, 2**19)
        for rank in range(base):
            draw.put(rank, "exchange out", "exchange", 0.12 * MS, after=slow + 0.3 * MS, whom="fa rank 39",
                     path=f"{at}.self_attn", line="fa_pool.plan:38", bytes=2**25)  # fmt: skip
            for target in range(base, base + extra):
                draw.send(target, rank, 2**20)
            draw.put(rank, "aten.linear", "matmul", 1.4 * MS, flops=2**39, bytes=2**28,
                     path=f"{at}.mlp.up_proj", line="fa_pool.plan:33")  # fmt: skip
            draw.put(rank, "all_reduce", "all_reduce", 0.35 * MS, path=f"{at}.mlp.down_proj",
                     line="fa_pool.plan:34", bytes=2**25)  # fmt: skip
            for other in range(base):
                if other != rank:
                    draw.send(rank, other, 2**22)
    return draw.timeline()


def ping_pong(attention: int = 12, experts: int = 4, layers: int = 12) -> Timeline:
    """Attention and experts on ranks of their own, two micro-batches in turns."""
    actors = [Actor(f"attn rank {n}", (n,), "attn") for n in range(attention)]
    actors += [
        Actor(f"expert rank {attention + n}", (attention + n,), "expert") for n in range(experts)
    ]
    draw = Drawing("ping-pong, decode", actors)
    back = {0: 0.0, 1: 0.0}
    us = 1e-6
    for layer in range(layers):
        for batch in (0, 1):
            path, ready = f"layers.{layer}", 0.0
            for rank in range(attention):
                draw.put(rank, "plancc.attention", "attention", 40 * us, after=back[batch], batch=batch,
                         whom=f"expert rank {attention}", path=f"{path}.self_attn", line="ma.plan:12",
                         flops=2**30, bytes=2**24)  # fmt: skip
                ready = max(ready, draw.put(
                    rank, "all_to_all", "all_to_all", 9 * us, stream=COMMUNICATION, batch=batch,
                    after=draw.now(rank), path=f"{path}.mlp", line="ma.plan:17", bytes=2**18,
                ))  # fmt: skip
                for e in range(experts):
                    draw.send(rank, attention + e, 2**16 * (e + 1))
            done = 0.0
            for e in range(experts):
                rank = attention + e
                draw.put(rank, "ops.grouped_linear", "matmul", (26 + 4 * e) * us, after=ready, batch=batch,
                         whom="attn rank 11", path=f"{path}.mlp.experts", line="ma.plan:17",
                         flops=2**32, bytes=2**26)  # fmt: skip
                done = max(done, draw.put(
                    rank, "all_to_all", "all_to_all", 9 * us, stream=COMMUNICATION, batch=batch,
                    after=draw.now(rank), path=f"{path}.mlp", line="ma.plan:17", bytes=2**18,
                ))  # fmt: skip
            back[batch] = done
    for rank in range(attention + experts):
        draw.hold(rank, 0.0, 20 * 10**9 + rank * 10**8)
    return draw.timeline()


def many_spans(count: int = 20_000, actors: int = 16) -> Timeline:
    """As many spans as asked for, shared by the actors."""
    draw = Drawing("many", [Actor(f"rank {n}", (n,), "base") for n in range(actors)])
    kinds = ("matmul", "memory", "attention", "all_reduce")
    for number in range(count):
        draw.put(
            number % actors, "step", kinds[number // actors % 4], 7e-6, path=f"layers.{number}"
        )
    return draw.timeline()


def with_title(timeline: Timeline, title: str) -> Timeline:
    """The same under another name."""
    return dataclasses.replace(timeline, title=title)
