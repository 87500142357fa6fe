"""Checkpoints saved under one plan and read under another, bit by bit."""

from __future__ import annotations

import json
import math
from itertools import pairwise, product

import pytest
import torch
from ckpt_entries import (
    DTYPES,
    as_piece,
    check_holds,
    listing,
    pieces_of,
    save_alone,
    save_local,
    tensors,
    whole_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from plancc.runtime.checkpoint import (
    Checkpoint,
    CheckpointError,
    Piece,
    export_safetensors,
)
from plancc.runtime.checkpoint.pieces import same_bits
from plancc.runtime.launch import launch
from plancc.runtime.weights import SafetensorsWeights, WeightsError, whole


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("fused", [1, 3])
def test_four_local_ranks_save_what_any_plan_reads(tmp_path, dtype, fused):
    held = tensors(1, dtype)
    saved = save_local(tmp_path, 200, lambda rank: pieces_of(held, rank, 4, fused))
    assert [found.path for found in saved] == [tmp_path / "step-00000200"] * 4
    assert listing(tmp_path) == ["latest", "step-00000200"]
    assert listing(saved[0].path) == [
        "checkpoint.json",
        *(f"rank-0000{r}.safetensors" for r in range(4)),
    ]
    checkpoint = Checkpoint.open(tmp_path)
    assert (checkpoint.step, checkpoint.state) == (200, {"step": 200})
    check_holds(checkpoint, held)
    for world in (1, 2, 3, 5):
        for rank in range(world):
            for piece in pieces_of(held, rank, world, 4 - fused):
                assert torch.equal(checkpoint.read(piece.name, piece.ranges), piece.tensor)


def test_state_comes_back_as_it_was(tmp_path):
    state = {"seed": 2**80, "loss": 0.1 + 0.2, "tiny": 5e-324, "names": ["ü", None, True], "": {}}
    save_alone(tmp_path, 0, [], state)
    assert Checkpoint.open(tmp_path).state == state


@pytest.mark.parametrize(
    ("state", "text"),
    [
        ({"betas": (0.9, 0.95)}, "state['betas'] is a tuple"),
        ({"a": [1, {"b": math.nan}]}, "state['a'][1]['b'] is nan"),
        ({"a": {1: 2}}, "state['a'] has the key 1, which is not a string"),
        ({"a": torch.tensor(1)}, "state['a'] is a Tensor"),
    ],
)
def test_state_that_json_would_change_is_refused(tmp_path, state, text):
    with pytest.raises(CheckpointError) as caught:
        save_alone(tmp_path, 0, [], state)
    assert text in str(caught.value)
    assert listing(tmp_path) == []


def test_bits_survive_that_equality_does_not_see(tmp_path):
    odd = torch.tensor([math.nan, -0.0, 0.0, math.inf, -math.nan, 5e-324], dtype=torch.float64)
    save_alone(tmp_path, 1, [Piece("x", (6,), (((0, 6),),), odd)])
    assert same_bits(Checkpoint.open(tmp_path).read("x", whole((6,))), odd)


def test_what_is_read_is_fresh(tmp_path):
    held = tensors(2)
    save_alone(tmp_path, 1, pieces_of(held, 0, 1))
    checkpoint = Checkpoint.open(tmp_path)
    for name, tensor in held.items():
        checkpoint.read(name, whole_of(tensor)).fill_(7)
    check_holds(checkpoint, held)


def test_views_and_parameters_are_saved_as_they_look(tmp_path):
    base = torch.arange(24.0).view(4, 6)
    views = {"t": base.t(), "stride": base[::2, 1::2], "p": torch.nn.Parameter(base[1])}
    save_alone(tmp_path, 1, [as_piece(n, v, whole(v.shape)) for n, v in views.items()])
    checkpoint = Checkpoint.open(tmp_path)
    for name, view in views.items():
        assert torch.equal(checkpoint.read(name, whole(view.shape)), view)


def test_a_part_is_a_source_of_weights(tmp_path):
    held = tensors(3)
    save_local(tmp_path, 1, lambda rank: pieces_of(held, rank, 4))
    model = Checkpoint.open(tmp_path).under("model/")
    assert model.names() == ["block.0.qkv", "embed", "none", "norm", "scale"]
    assert model.shape("embed") == (12, 6) and model.dtype("embed") == torch.float32
    assert torch.equal(model.read("embed", (((2, 9),), ((0, 6),))), held["model/embed"][2:9])
    model.check({"embed": ((12, 6), torch.float32)})
    with pytest.raises(WeightsError, match="not in the checkpoint"):
        model.check({"ember": ((12, 6), None)})


def test_replicas_may_come_from_several_ranks(tmp_path):
    held = tensors(4)

    def make(rank):
        return pieces_of(held, 0, 1) if rank < 2 else pieces_of(held, rank, 4)

    save_local(tmp_path, 1, make)
    check_holds(Checkpoint.open(tmp_path), held)


def test_one_rank_may_hold_several_pieces_of_a_tensor(tmp_path):
    x = torch.arange(10)
    rows = [((0, 4),), ((4, 4),), ((7, 10), (4, 7))]
    save_alone(tmp_path, 1, [as_piece("x", x, (row,)) for row in rows])
    assert torch.equal(Checkpoint.open(tmp_path).read("x", whole((10,))), x)


def test_the_manifest_says_where_everything_lies(tmp_path):
    held = tensors(5)
    save_local(tmp_path, 7, lambda rank: pieces_of(held, rank, 4, fused=3))
    body = json.loads((tmp_path / "step-00000007" / "checkpoint.json").read_text())
    assert body["schema"] == "plancc/checkpoint@1" and body["step"] == 7
    row = body["tensors"]["model/block.0.qkv"]
    assert row["dtype"] == "F32" and row["shape"] == [18, 5]
    piece = row["pieces"][1]
    assert piece["ranges"] == [[[1, 3], [7, 9], [13, 15]], [[0, 5]]]
    stored = load_file(tmp_path / "step-00000007" / piece["file"])[piece["key"]]
    assert torch.equal(stored, held["model/block.0.qkv"][[1, 2, 7, 8, 13, 14]])


def test_export_gives_plain_weights(tmp_path):
    held = tensors(6, torch.bfloat16)
    save_local(tmp_path / "run", 1, lambda rank: pieces_of(held, rank, 4, fused=3))
    checkpoint = Checkpoint.open(tmp_path / "run")
    target = tmp_path / "model.safetensors"
    export_safetensors(checkpoint, target)
    export_safetensors(checkpoint, target)
    model = {n.removeprefix("model/"): t for n, t in held.items() if n.startswith("model/")}
    found = load_file(target)
    assert found.keys() == model.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.items())
    weights = SafetensorsWeights(target)
    assert torch.equal(weights.read("embed", whole((12, 6))), model["embed"])
    assert listing(tmp_path) == ["model.safetensors", "run"]
    with pytest.raises(CheckpointError, match="no tensor whose name begins with `other/`"):
        export_safetensors(checkpoint, target, prefix="other/")
    with pytest.raises(CheckpointError, match="cannot be written"):
        export_safetensors(checkpoint, tmp_path / "nowhere" / "model.safetensors")


def test_torch_distributed_checkpoint_reads_the_data_files(tmp_path):
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    held = {name: x for name, x in tensors(8).items() if x.numel()}
    path = save_local(tmp_path, 1, lambda rank: pieces_of(held, rank, 4))[0].path
    into = {name: torch.zeros_like(x) for name, x in held.items()}
    dcp.load(into, storage_reader=dcp.HuggingFaceStorageReader(str(path)), no_dist=True)
    assert all(torch.equal(into[name], x) for name, x in held.items())


def test_torch_refuses_what_it_would_misread(tmp_path):
    dcp = pytest.importorskip("torch.distributed.checkpoint")
    held = tensors(9)
    path = save_local(tmp_path, 1, lambda rank: pieces_of(held, rank, 4, fused=3))[0].path
    with pytest.raises(Exception, match="qkv"):
        dcp.HuggingFaceStorageReader(str(path)).read_metadata()


def test_real_processes_save_and_others_resume(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(__file__).rpartition("/")[0])
    payload = {"folder": str(tmp_path), "step": 30, "salt": 11}
    told = launch(4, "ckpt_entries:save", payload)
    assert told == [["saved", str(tmp_path / "step-00000030")]] * 4
    check_holds(Checkpoint.open(tmp_path), tensors(11))
    assert launch(3, "ckpt_entries:load", payload) == [30] * 3


# Random plans.


@st.composite
def partitions(draw, size):
    """Cut 0..size into up to 4 parts, each of which is several ranges, in any order."""
    count = draw(st.integers(1, 4))
    edges = sorted(draw(st.lists(st.integers(0, size), max_size=5)))
    bounds = [0, *edges, size]
    parts = [[] for _ in range(count)]
    for row in pairwise(bounds):
        parts[draw(st.integers(0, count - 1))].append(row)
    return [tuple(draw(st.permutations(part))) for part in parts]


@st.composite
def wanted(draw, size):
    """Any ranges of a dim: in any order, empty or repeated."""
    pairs = draw(st.lists(st.tuples(st.integers(0, size), st.integers(0, size)), max_size=3))
    return tuple((min(pair), max(pair)) for pair in pairs)


@st.composite
def cases(draw):
    shape = tuple(draw(st.lists(st.integers(0, 7), max_size=3)))
    dtype = draw(st.sampled_from(DTYPES))
    plan = list(product(*(draw(partitions(size)) for size in shape)))
    owners = [draw(st.integers(0, 2)) for _ in plan]
    wants = [tuple(draw(wanted(size)) for size in shape) for _ in range(3)]
    return shape, dtype, plan, owners, wants, draw(st.integers(0, 99))


@settings(max_examples=150, deadline=None)
@given(cases())
def test_any_ranges_to_any_ranges(tmp_path_factory, case):
    shape, dtype, plan, owners, wants, salt = case
    folder = tmp_path_factory.mktemp("plan")
    x = torch.randint(-99, 99, shape, generator=torch.Generator().manual_seed(salt)).to(dtype)
    held = list(zip(plan, owners, strict=True))

    def make(rank):
        return [as_piece("x", x, ranges) for ranges, owner in held if owner == rank]

    save_local(folder, salt, make, world=3)
    checkpoint = Checkpoint.open(folder)
    for ranges in (whole(shape), *plan, *wants):
        expected = x
        for dim, row in enumerate(ranges):
            index = [i for low, high in row for i in range(low, high)]
            expected = expected.index_select(dim, torch.tensor(index, dtype=torch.int64))
        found = checkpoint.read("x", ranges)
        assert found.dtype == dtype and found.is_contiguous() and torch.equal(found, expected)


# Training on.


def train(model, optimizer, steps, seed_at):
    for step in range(seed_at, seed_at + steps):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(x) + torch.rand(8, 6)).square().mean().backward()
        optimizer.step()


def fresh():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 9), torch.nn.Tanh(), torch.nn.Linear(9, 6))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def state_of(model, optimizer):
    """The tensors of a run by checkpoint names, its generator among them."""
    found = {"rng": torch.get_rng_state()}
    for name, parameter in model.named_parameters():
        found[f"model/{name}"] = parameter
        for key, value in optimizer.state[parameter].items():
            found[f"optim/{name}/{key}"] = value
    return found


def test_a_resumed_run_goes_on_bit_by_bit(tmp_path):
    model, optimizer = fresh()
    train(model, optimizer, 5, 0)
    held = {name: x.detach().clone() for name, x in state_of(model, optimizer).items()}
    save_local(tmp_path, 5, lambda rank: pieces_of(held, rank, 4))
    train(model, optimizer, 5, 5)
    expected = state_of(model, optimizer)

    checkpoint = Checkpoint.open(tmp_path)
    again, optimizer = fresh()
    train(again, optimizer, 1, 0)
    checkpoint.check_against({n: (x.shape, x.dtype) for n, x in held.items()})
    with torch.no_grad():
        for name, x in state_of(again, optimizer).items():
            x.copy_(checkpoint.read(name, whole_of(x)))
    torch.set_rng_state(checkpoint.read("rng", (((0, checkpoint.shape("rng")[0]),),)))
    train(again, optimizer, 5, checkpoint.step)
    found = state_of(again, optimizer)
    assert found.keys() == expected.keys()
    assert all(same_bits(found[name], x) for name, x in expected.items())
