"""Simulate one step of compiled programs on given hardware: prefill, decode or training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from plancc.ir.mesh import World
from plancc.ir.program import ProgramSet, RankProgram
from plancc.simulator.actors import FEW, Cast
from plancc.simulator.cores import Cores
from plancc.simulator.engine import Engine
from plancc.simulator.forms import Actor, Timeline, Work
from plancc.simulator.moved import output_verbs, outputs_of
from plancc.simulator.phases import FUNCTIONS, inference_rounds, micro_batches, training_rounds
from plancc.simulator.place import Place, Sizes, owned_parts
from plancc.simulator.process import Slots, Tally
from plancc.simulator.routing import EVEN, Routing
from plancc.simulator.script import Hardware, Item, Label, Script, Writer, messages_seconds
from plancc.simulator.stretches import stretched
from plancc.simulator.traffic import MOST, traffic
from plancc.simulator.verbs import ProgramVerbs
from plancc.simulator.work import ProgramWork

STEPS = 6
"""Decode steps that are simulated: the first ones fill the pipeline, the others give TPOT."""
ADAM_WORDS = 7
"""float32 words that Adam moves a parameter: gradient, weight, moments read; the last three written."""


@dataclass(frozen=True)
class Outcome:
    """One simulated step. `seconds` is its time: TTFT of a prefill, TPOT of a decode, a training step's.

    `whole` is the time of all that was simulated, `steps` how many steps that were; tallies are of all.
    """

    phase: str
    seconds: float
    whole: float
    steps: int
    microbatches: int
    actors: tuple[Actor, ...]
    tallies: tuple[Tally, ...]
    timeline: Timeline


@dataclass(frozen=True)
class Inputs:
    """What a step is given: sequences in all, new tokens of each, cached tokens of each, micro-batches.

    `lockstep`: a decode step begins when all micro-batches have their tokens, as in `plancc run`.
    """

    batch: int
    tokens: int
    past: int = 0
    microbatches: int | None = None
    lockstep: bool = False
    steps: int = 1


class Simulation:
    """One set of programs on hardware."""

    def __init__(
        self, programs: ProgramSet, world: World, hardware: Hardware, routing: Routing = EVEN,
        *, few: int = FEW, spans: bool = True,
    ) -> None:  # fmt: skip
        self.programs, self.world, self.hardware, self.routing = programs, world, hardware, routing
        self.few = few if not hardware.cores else world.size
        self.spans = spans
        self.nodes = [d // world.per_node for d in world.devices] if world.per_node else []
        self.works = {
            program.name: ProgramWork(program, routing, programs.microbatches)
            for program in programs.programs
        }
        self.verbs = {
            program.name: ProgramVerbs(program, world.grids, self.nodes, routing)
            for program in programs.programs
        }
        self.training = any(program.sections for program in programs.programs)

    def run(
        self, inputs: Inputs, title: str = "", resting: Mapping[str, int] | None = None
    ) -> Outcome:
        """Simulate; SimulateError where the hardware lacks a constant, or an operator a cost.

        `resting` has for each program, by name, the bytes that a rank holds all the time.
        """
        count = inputs.microbatches or self.programs.microbatches
        sizes = micro_batches(inputs.batch, inputs.tokens, inputs.past, count)
        cast = Cast(self.programs, self.world.grids, sizes[0], self.hardware.node, self.few)
        rounds = self.rounds(cast, sizes, inputs)
        held = [(resting or {}).get(program.name, 0) for program in cast.program_of]
        engine = Engine(
            cast.actors, rounds, resting=held, spans=self.spans,
            feedback=self.feedback(cast, sizes[0]), cores=self.cores(cast.actors),
        )  # fmt: skip
        whole = engine.run()
        ends = [
            max((engine.facts.get(("token", step, n), 0.0) for n in range(len(sizes))), default=0.0)
            for step in range(inputs.steps)
        ]
        whole = max([whole, *ends])
        seconds = whole
        if inputs.steps > 1:
            first = inputs.steps // 2 - 1
            seconds = (ends[-1] - ends[first]) / (inputs.steps - 1 - first)
        spans = tuple(span for process in engine.processes for span in process.spans)
        memory = {n: tuple(process.memory) for n, process in enumerate(engine.processes)}
        timeline = Timeline(title, True, tuple(cast.actors), spans, memory, self.traffic(inputs))
        tallies = tuple(process.tally for process in engine.processes)
        return Outcome(
            self.programs.phase, seconds, whole, inputs.steps, len(sizes), tuple(cast.actors),
            tallies, timeline,
        )  # fmt: skip

    def rounds(self, cast: Cast, sizes: Sequence[Sizes], inputs: Inputs) -> list[Sequence[Slots]]:
        """The calls of every actor."""
        tellers = sum(bool(program.outputs) for program in cast.program_of)
        found: list[Sequence[Slots]] = []
        for number, program in enumerate(cast.program_of):
            scripts = {one: self.script(number, cast, one) for one in dict.fromkeys(sizes)}
            if self.training:
                found.append(training_rounds(program, self.programs, scripts, sizes))
            else:
                found.append(
                    inference_rounds(
                        program, scripts, sizes, inputs.steps, tellers, inputs.lockstep
                    )
                )
        return found

    def script(self, number: int, cast: Cast, sizes: Sizes) -> Script:
        """What an actor does with a micro-batch of these sizes."""
        program = cast.program_of[number]
        rank = cast.actors[number].ranks[0]
        place = Place(rank, self.world.grids, sizes, owned_parts(program))
        work = self.works[program.name]
        calls = self.verbs[program.name].verbs(place)
        writer = Writer(number, cast, self.hardware, place)
        script: Mapping[str, tuple[Item, ...]] = writer.script(work.works(place), calls)
        if self.training:
            late = {
                f"{FUNCTIONS['W']}_{chunk}": tuple(self.weights_later(rank, chunk, found))
                for chunk, found in work.later(place).items()
            }
            script = {**script, **late, "optimizer": (self.optimizer(program, place),)}
        else:
            host = self.hardware.host(rank, "step")
            around = (Item("work", Label("step", "compute"), host),) if host else ()
            script = {**script, "step": (*around, *script.get("step", ()))}
        if self.spans or self.hardware.cores:  # who shares cores is alone nowhere
            return script
        return {name: stretched(number, items) for name, items in script.items()}

    def cores(self, actors: Sequence[Actor]) -> Cores | None:
        """The cores that ranks of a node share; None where every device computes on its own."""
        homes = [self.hardware.node(actor.ranks[0]) for actor in actors]
        return Cores(self.hardware.cores, homes) if self.hardware.cores else None

    def weights_later(self, rank: int, chunk: int, works: Sequence[Work]) -> list[Item]:
        """What a W action does: gradients of weights that the backward of its chunk has left."""
        return [
            Item(
                "work", Label(f"weights of chunk {chunk}", work.kind, "", "", work.flops, work.moved),
                self.hardware.seconds(rank, work),
            )
            for work in works
            if work.kind != "view"
        ]  # fmt: skip

    def feedback(self, cast: Cast, sizes: Sizes) -> float:
        """The seconds that it takes to give new tokens to all ranks, as the runner does."""
        held = outputs_of(self.programs).get("next_token")
        givers = [n for n, p in enumerate(cast.program_of) if "next_token" in p.outputs]
        if held is None or not givers:
            return 0.0
        rank = cast.actors[givers[0]].ranks[0]
        place = Place(rank, self.world.grids, sizes, owned_parts(cast.program_of[givers[0]]))
        calls = output_verbs(held, place, range(self.world.size))
        return messages_seconds(self.hardware, rank, [one for call in calls for one in call.sends])

    def traffic(self, inputs: Inputs) -> dict[tuple[int, int], int]:
        """Who gives how many bytes to whom in one step; nothing for worlds too large to show."""
        if not self.spans or self.world.size > MOST:
            return {}
        sizes = Sizes(inputs.batch, inputs.tokens, inputs.past)
        return traffic(
            self.programs, self.world.grids, sizes, self.nodes, self.routing, inputs.microbatches
        )

    def optimizer(self, program: RankProgram, place: Place) -> Item:
        """What Adam does on a rank: bound by the memory that it moves."""
        words = sum(place.elements(held.layout) for held in program.gradients.values()) * ADAM_WORDS
        size = words * torch.float32.itemsize
        work = Work("memory", words, size * 4 // ADAM_WORDS, size * 3 // ADAM_WORDS, "f32")
        seconds = self.hardware.seconds(place.rank, work, "adam") if words else 0.0
        seconds += self.hardware.host(place.rank, "train_step")
        seconds += self.hardware.host(place.rank, "parameter") * len(program.gradients)
        return Item("work", Label("optimizer", "memory", "", "", words, size), seconds)
