"""Weights: slices of safetensors files, seeded ones, and every way in which they can be wrong."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from plancc.runtime.seeded import SeededWeights, guess_kind
from plancc.runtime.weights import (
    INDEX,
    SafetensorsWeights,
    WeightsError,
    find,
    whole,
)

TENSORS = {
    "layers.0.q.weight": torch.arange(24.0).view(6, 4),
    "layers.0.experts": torch.arange(120).view(5, 4, 6).to(torch.int32),
    "norm.weight": torch.arange(7).to(torch.bfloat16),
    "scale": torch.tensor(3.5, dtype=torch.float64),
    "wide": torch.arange(64).view(8, 8).to(torch.float8_e4m3fn),
}
PICKS = [
    ("layers.0.q.weight", (((0, 6),), ((0, 4),)), lambda t: t),
    ("layers.0.q.weight", (((2, 4),), ((0, 4),)), lambda t: t[2:4]),
    ("layers.0.q.weight", (((0, 6),), ((1, 3),)), lambda t: t[:, 1:3]),
    (
        "layers.0.q.weight",
        (((4, 6), (0, 1)), ((3, 4), (0, 2))),
        lambda t: t[[4, 5, 0]][:, [3, 0, 1]],
    ),
    ("layers.0.q.weight", (((3, 3),), ((0, 4),)), lambda t: t[3:3]),
    ("layers.0.q.weight", (((3, 3), (5, 6)), ((0, 4),)), lambda t: t[5:6]),
    ("layers.0.experts", (((1, 3),), ((0, 1), (2, 4)), ((5, 6),)), lambda t: t[1:3, [0, 2, 3], 5:]),
    ("norm.weight", (((2, 5),),), lambda t: t[2:5]),
    ("scale", (), lambda t: t),
]


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "some.safetensors"
    save_file(TENSORS, path)
    return path


@pytest.fixture
def folder(tmp_path):
    """A checkpoint of two shards with an index."""
    names = sorted(TENSORS)
    places = {name: f"model-{i % 2}.safetensors" for i, name in enumerate(names)}
    for shard in set(places.values()):
        save_file({n: TENSORS[n] for n in names if places[n] == shard}, tmp_path / shard)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    return tmp_path


def problems(call, *arguments):
    with pytest.raises(WeightsError) as caught:
        call(*arguments)
    return list(caught.value.problems)


@pytest.mark.parametrize(("name", "ranges", "pick"), PICKS)
def test_slices(file, name, ranges, pick):
    weights = SafetensorsWeights(file)
    found = weights.read(name, ranges)
    assert torch.equal(found, pick(TENSORS[name]))
    assert found.is_contiguous()
    assert found.dtype == weights.dtype(name) == TENSORS[name].dtype
    assert weights.shape(name) == tuple(TENSORS[name].shape)


def test_a_folder_with_an_index_or_without(folder):
    for step in range(2):
        weights = SafetensorsWeights(folder)
        assert weights.names() == sorted(TENSORS)
        for name, tensor in TENSORS.items():
            found = weights.read(name, whole(tensor.shape))
            assert torch.equal(found.float(), tensor.float()), step
        (folder / INDEX).unlink(missing_ok=True)


def test_several_files(folder):
    files = [folder / "model-0.safetensors", str(folder / "model-1.safetensors")]
    assert SafetensorsWeights(files).names() == sorted(TENSORS)


def test_a_whole_table_is_checked_at_once(file):
    weights = SafetensorsWeights(file)
    weights.check({name: (t.shape, t.dtype) for name, t in TENSORS.items()})
    weights.check({"norm.weight": ((7,), None)})
    table = {
        "norm.weights": ((7,), None),
        "layers.0.q.weight": ((4, 6), None),
        "norm.weight": ((7,), torch.float32),
        "nothing like it at all": ((1,), None),
    }
    assert problems(weights.check, table) == [
        "weight `norm.weights` is missing; did you mean `norm.weight`?",
        "weight `layers.0.q.weight` has shape [6, 4], not [4, 6]",
        "weight `norm.weight` has dtype bfloat16, not float32",
        "weight `nothing like it at all` is missing",
    ]


def test_ranges_outside_the_tensor(file):
    weights = SafetensorsWeights(file)
    for ranges in ((((0, 7),), ((0, 4),)), (((0, 6),),), (((3, 2),), ((0, 4),))):
        assert (
            "has shape [6, 4], which lacks"
            in problems(weights.read, "layers.0.q.weight", ranges)[0]
        )


def test_files_that_are_missing_truncated_or_no_safetensors(file, tmp_path):
    cut, junk, empty = tmp_path / "cut", tmp_path / "junk", tmp_path / "empty"
    cut.write_bytes(file.read_bytes()[:-10])
    junk.write_text("PK, but not a checkpoint")
    empty.touch()
    found = problems(SafetensorsWeights, [cut, junk, empty, tmp_path / "none"])
    assert len(found) == 4
    for path, text in zip((cut, junk, empty), found, strict=False):
        assert text.startswith(f"weights file `{path}` is truncated or corrupt: ")
    assert found[3] == f"weights file `{tmp_path / 'none'}` does not exist"


def test_folders_that_are_wrong(folder, tmp_path_factory):
    bare = tmp_path_factory.mktemp("bare")
    assert problems(SafetensorsWeights, bare) == [f"no safetensors file in folder `{bare}`"]
    (folder / "model-1.safetensors").unlink()
    assert "model-1.safetensors` does not exist" in problems(SafetensorsWeights, folder)[0]
    index = folder / INDEX
    index.write_text('{"weight_map": {"ghost": "model-0.safetensors"}}')
    assert problems(SafetensorsWeights, folder) == [
        f"weight `ghost` is in the index `{index}` but not in `model-0.safetensors`"
    ]
    for text in ("{", "[]", '{"weight_map": 3}', "{}"):
        index.write_text(text)
        assert "cannot be read" in problems(SafetensorsWeights, folder)[0]


def test_a_weight_in_several_files(file):
    assert "is in several files" in problems(SafetensorsWeights, [file, file])[0]


def test_a_tied_weight_is_found_under_any_of_its_names(file):
    weights = SafetensorsWeights(file)
    assert find(weights, ["lm_head.weight", "norm.weight"]) == "norm.weight"
    assert len(problems(find, weights, ["a", "b"])) == 2


SEEDED = {
    "big.weight": ((3000, 1000), torch.float32, ""),
    "experts": ((6, 40, 30), torch.bfloat16, ""),
    "norm.weight": ((2000,), torch.float32, ""),
    "fc.bias": ((2000,), torch.float32, ""),
    "steps": ((), torch.int64, ""),
    "alpha": ((), torch.float32, ""),
    "gate": ((5, 0), torch.float32, ""),
    "ones": ((3, 2), torch.float16, "ones"),
}


def test_seeded_slices_are_slices_of_the_whole():
    weights = SeededWeights(7, SEEDED)
    for name, (shape, dtype, _) in SEEDED.items():
        all_of_it = SeededWeights(7, SEEDED).read(name, whole(shape))
        assert (all_of_it.shape, all_of_it.dtype) == (torch.Size(shape), dtype)
        if len(shape) < 2 or 0 in shape:
            continue
        half = tuple(((size // 3, size - 1), (0, 1)) for size in shape)
        expected = all_of_it
        for dim, (size, pieces) in enumerate(zip(shape, half, strict=True)):
            index = [i for low, high in pieces for i in range(low, high)]
            assert max(index) < size
            expected = expected.index_select(dim, torch.tensor(index))
        assert torch.equal(weights.read(name, half), expected)


def test_seeded_scales():
    weights = SeededWeights(0, SEEDED)
    big = weights.read("big.weight", whole((3000, 1000)))
    assert big.std().item() == pytest.approx(1000**-0.5, rel=0.01)
    norm = weights.read("norm.weight", whole((2000,)))
    assert norm.mean().item() == pytest.approx(1, abs=0.02)
    assert weights.read("fc.bias", whole((2000,))).abs().max() < 0.2
    assert weights.read("ones", whole((3, 2))).tolist() == [[1, 1]] * 3
    assert weights.read("steps", ()).item() == 0


def test_seeds_and_names_make_a_difference():
    ranges = whole((3000, 1000))
    table = SEEDED | {"other.weight": SEEDED["big.weight"]}
    one, two = SeededWeights(1, table), SeededWeights(2, table)
    assert torch.equal(one.read("big.weight", ranges), one.read("big.weight", ranges))
    assert not torch.equal(one.read("big.weight", ranges), two.read("big.weight", ranges))
    assert not torch.equal(one.read("big.weight", ranges), one.read("other.weight", ranges))


def test_a_slice_of_a_huge_tensor_costs_a_slice():
    weights = SeededWeights(0, {"w": ((10**7, 8192), torch.bfloat16, "")})
    part = weights.read("w", (((5_000_000, 5_000_100),), ((0, 8192),)))
    assert part.shape == (100, 8192)


def test_seeded_weights_that_are_wrong():
    assert problems(SeededWeights, 0, {"a": ((1,), torch.float32, "curly")}) == [
        "weight `a` is of kind `curly`; there are matrix, norm, bias, zeros, ones"
    ]
    assert problems(SeededWeights(0, SEEDED).check, {"fc.bias": ((3,), None), "x": ((), None)}) == [
        "weight `fc.bias` has shape [2000], not [3]",
        "weight `x` is missing",
    ]


def test_guesses():
    assert guess_kind("a.weight", (4, 4), torch.float32) == "matrix"
    assert guess_kind("a.weight", (4,), torch.float32) == "norm"
    assert guess_kind("bn.running_var", (4,), torch.float32) == "norm"
    assert guess_kind("a.sinks", (4,), torch.float32) == "bias"
    assert guess_kind("ids", (4, 4), torch.int64) == "zeros"
