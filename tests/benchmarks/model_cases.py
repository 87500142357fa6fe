"""The steps that the simulator is held against: those that its model was made with, and others."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import plancc.api as api
from plancc.calibrate.point import Point
from plancc.runtime.artifact import Artifact

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
PLANS = HERE / "plans"
DENSE = {
    "layers": "4",
    "hidden": "512",
    "heads": "8",
    "ffn": "1408",
    "vocab": "4096",
    "max_len": "512",
}
WIDE = {
    "layers": "3",
    "hidden": "768",
    "heads": "12",
    "ffn": "2048",
    "vocab": "4096",
    "max_len": "512",
}
MOE = {
    "layers": "3", "hidden": "512", "heads": "8", "experts": "8", "top_k": "2", "ffn": "768",
    "vocab": "4096", "max_len": "512",
}  # fmt: skip
GPT = {"layers": "4", "hidden": "512", "heads": "8", "ffn": "2048", "vocab": "4096", "seq_len": "128",
       "fused": "true"}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A plan with its settings and model, and one step of it. `known`: the model was made with it."""

    plan: Path
    point: Point
    known: bool
    sets: dict[str, str] = field(default_factory=dict)
    model: str = "dense"
    args: dict[str, str] = field(default_factory=lambda: DENSE)
    source: Path = EXAMPLES / "models.py"

    @property
    def spec(self) -> str:
        """The model as commands take it."""
        return f"{self.source}:{self.model}"

    @property
    def name(self) -> str:
        """`tp tp=2, gloo: decode 1 x 1 behind 128`."""
        sets = "".join(f" {name}={value}" for name, value in self.sets.items())
        size = "" if self.args is DENSE else f" ({self.model} {self.args['hidden']})"
        return f"{self.plan.stem}{sets}{size}, {self.point.backend}: {self.work}"

    @property
    def work(self) -> str:
        """The step without the plan."""
        p = self.point
        behind = f" behind {p.past}" if p.past else ""
        return f"{p.phase} {p.batch} x {p.tokens}{behind}"

    def compiled(self, folder: Path) -> Artifact:
        """The case's artifact, written into a folder."""
        return api.compile(
            self.plan, self.spec, folder / "a", sets=self.sets, model_args=self.args, verify=False,
            for_="train" if self.point.phase == "train" else "infer",
        ).artifact  # fmt: skip

    @property
    def contest(self) -> str:
        """What all plans that compete with this one have in common."""
        return f"{self.model} {self.args['hidden']} {self.point.backend} {self.work}"


TP, GRID = EXAMPLES / "tp.plan", EXAMPLES / "dp_tp.plan"


def prefill(backend: str, batch: int = 1, tokens: int = 128) -> Point:
    """A prefill."""
    return Point("prefill", batch, tokens, 0, backend, 9)


def decode(backend: str, batch: int = 1, past: int = 128) -> Point:
    """A decode step."""
    return Point("decode", batch, 1, past, backend, 25)


def train(backend: str, batch: int = 4, tokens: int = 64) -> Point:
    """A training step."""
    return Point("train", batch, tokens, 0, backend, 7)


def one(plan: Path, point: Point, known: bool = True, **sets: int) -> Case:
    """A case of the dense model."""
    return Case(plan, point, known, {name: str(value) for name, value in sets.items()})


def new(plan: Path, point: Point, **sets: int) -> Case:
    """A case that the model was not made with."""
    return one(plan, point, False, **sets)


def experts(plan: str, point: Point, known: bool) -> Case:
    """A case of the model with experts, on two ranks."""
    return Case(EXAMPLES / plan, point, known, {"ranks": "2"}, "moe", MOE)


KNOWN = (
    one(TP, prefill("local"), tp=1), one(TP, prefill("local"), tp=2),
    one(TP, prefill("local"), tp=4),
    one(TP, decode("local"), tp=1), one(TP, decode("local", 8), tp=2),
    one(TP, decode("local", 8), tp=1),
    one(TP, prefill("gloo"), tp=1), one(TP, prefill("gloo"), tp=2),
    one(TP, decode("gloo"), tp=2), one(TP, decode("gloo", 8), tp=4),
    one(TP, train("gloo"), tp=2), one(TP, train("local"), tp=1),
    one(TP, prefill("gloo"), tp=3), one(TP, decode("gloo", 8), tp=3),
    one(GRID, prefill("gloo", 4, 64), dp=2, tp=2), one(PLANS / "sp.plan", prefill("gloo", 4, 64)),
    one(PLANS / "stages.plan", prefill("gloo", 4, 64)), one(PLANS / "stages.plan", decode("gloo", 8)),
    one(PLANS / "dp.plan", train("gloo")), one(PLANS / "fsdp.plan", train("gloo")),
    one(PLANS / "sp.plan", train("local")), one(PLANS / "pipeline.plan", train("gloo")),
    one(PLANS / "fa.plan", decode("local")), one(PLANS / "fa.plan", decode("gloo")),
    experts("expert_parallel.plan", prefill("gloo"), True),
    experts("expert_data_parallel.plan", decode("local", 8), True),
    Case(TP, decode("local", 2), True, {"tp": "2"}, args=WIDE),
    Case(GRID, prefill("local", 4, 64), True, {"dp": "2", "tp": "1"}, args=WIDE),
    one(TP, decode("local", 1, 400), tp=3),
)  # fmt: skip
"""Steps that were looked at while the model was made."""
OTHERS = (
    new(TP, prefill("gloo", 1, 300), tp=2), new(TP, decode("gloo", 8), tp=2),
    new(GRID, decode("gloo", 8), dp=2, tp=1), new(GRID, decode("gloo", 8), dp=2, tp=2),
    new(PLANS / "stages.plan", prefill("local", 4, 64)),
    new(PLANS / "fa.plan", prefill("local", 1, 200)), new(PLANS / "fa.plan", prefill("gloo", 1, 200)),
    new(PLANS / "pipeline.plan", train("local")), new(PLANS / "fsdp.plan", train("local", 4, 128)),
    Case(TP, prefill("gloo"), False, {"tp": "2"}, args=WIDE),
    Case(TP, train("gloo", 2, 128), False, {"tp": "2"}, args=WIDE),
    experts("expert_parallel.plan", decode("gloo", 8), False),
    experts("expert_data_parallel.plan", prefill("gloo", 4, 64), False),
    Case(PLANS / "dp.plan", train("gloo", 8), False, {}, "gpt", GPT, HERE / "gpt.py"),
    Case(PLANS / "fsdp.plan", train("local", 8), False, {}, "gpt", GPT, HERE / "gpt.py"),
)  # fmt: skip
"""Steps that were first run when the model was made, and that nothing in it was changed for."""
CASES = KNOWN + OTHERS
