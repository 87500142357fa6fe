"""The whole plan of MA separation on sixteen processes, and random moments on small ones."""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path

import pytest
from failover_runs import Killer, Told, largest_difference, spares, train, undisturbed

pytestmark = pytest.mark.slow


def compared(name: str, told: Told, steps: int, folder: Path, **wanted: object) -> None:
    found = undisturbed(name, steps=steps, checkpoint=folder / "peace", **wanted)
    assert [row["step"] for row in told.rows] == list(range(1, steps + 1))
    assert max(abs(a - b) for a, b in zip(found.losses, told.losses, strict=True)) < 1e-9
    assert largest_difference(found.outcome.checkpoint, folder / "run") < 1e-9


def test_sixteen_processes(tmp_path: Path) -> None:
    """A rank of replica 0 dies, comes back; one of replica 1 dies, comes back."""
    told = Told(Killer(), patience=2)
    assert spares("whole").full.world == 16 and spares("whole").levels[1].world == 10
    told.steps[2] = lambda: told.killer.kill(3)
    told.acts = [
        lambda: told.killer.at(9, "dispatch"),
        lambda: told.killer.course.caught(signal.SIGTERM),
    ]
    done = train("whole", told, steps=300, checkpoint=tmp_path / "run")
    assert [event.ranks for event in told.said("lost")] == [(3,), (9,)]
    assert "ranks 0-2, 4-5 wait" in told.said("lost")[0].detail
    compared("whole", told, done.steps, tmp_path)


def test_with_wire_types() -> None:
    """Compressed gradients: it goes on as well, close to, not equal to, a run in peace."""
    told = Told(Killer())
    told.steps[2] = lambda: told.killer.kill(0)
    train("compressed", told, rejoin=False, steps=6, precision="fp32")
    found = undisturbed("compressed", steps=6, precision="fp32")
    assert max(abs(a - b) for a, b in zip(found.losses, told.losses, strict=True)) < 0.05


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["small", "dp3", "zero", "sp"])
def test_random_moments(name: str, seed: int, tmp_path: Path) -> None:
    told, draw = Told(Killer(), patience=2), random.Random(f"{name} {seed}")
    ranks = [rank for replica in spares(name).replicas.ranks for rank in replica]

    def soon() -> None:
        threading.Timer(draw.random() * 0.3, lambda: told.killer.kill(draw.choice(ranks))).start()

    told.steps[draw.randint(1, 3)] = soon
    told.acts = [soon, soon, lambda: told.killer.course.caught(signal.SIGTERM)]
    done = train(name, told, steps=600, checkpoint=tmp_path / "run", every=draw.choice([1, 2, 5]))
    assert len(told.said("lost")) == 3 and len(told.said("back")) == 3
    compared(name, told, done.steps, tmp_path)


def test_two_losses_of_three_replicas(tmp_path: Path) -> None:
    told = Told(Killer())
    told.steps = {2: lambda: told.killer.kill(0), 4: lambda: told.killer.kill(2)}
    done = train("dp3", told, rejoin=False, steps=8, checkpoint=tmp_path / "run")
    assert "replicas 1, 2 go on" in told.said("lost")[0].detail
    assert "replica 1 goes on alone" in told.said("lost")[1].detail
    compared("dp3", told, done.steps, tmp_path)


def test_narrow_weights_keep_their_masters() -> None:
    """bf16: what is handed over are the float32 masters; the split of a batch changes some rounding."""
    told = Told(Killer())
    told.steps[2] = lambda: told.killer.kill(1)
    told.acts = [lambda: told.killer.course.caught(signal.SIGTERM)]
    done = train("dp2", told, steps=400, precision="bf16")
    found = undisturbed("dp2", steps=done.steps, precision="bf16")
    assert max(abs(a - b) for a, b in zip(found.losses, told.losses, strict=True)) < 0.05
