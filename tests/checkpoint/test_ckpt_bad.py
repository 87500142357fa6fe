"""Checkpoints that are damaged, cut short, edited, of another model, or none at all."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
from ckpt_entries import check_holds, listing, pieces_of, save_alone, save_local, tensors

from plancc.dsl.errors import Bug
from plancc.runtime.checkpoint import Checkpoint, CheckpointError
from plancc.runtime.checkpoint.files import BLOCK
from plancc.runtime.weights import WeightsError, find

DATA = "rank-00002.safetensors"


@pytest.fixture
def folder(tmp_path):
    """Checkpoints of steps 100 and 200."""
    for step in (100, 200):
        save_local(tmp_path, step, lambda rank, step=step: pieces_of(tensors(step), rank, 4))
    return tmp_path


def problems(path, **options):
    with pytest.raises(CheckpointError) as caught:
        Checkpoint.open(path, **options)
    return caught.value.problems


def flip(path, at):
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def edit(path, change):
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))


@pytest.mark.parametrize("at", [0, 50, -1])
def test_a_flipped_bit(folder, at):
    path = folder / "step-00000200" / DATA
    flip(path, at)
    assert problems(folder) == (
        f"`{path}` was damaged: its SHA-256 is not the one it had",
        f"`{folder / 'step-00000100'}` is good: name this folder to resume from it",
    )
    assert Checkpoint.open(folder / "step-00000100").step == 100
    assert problems(path.parent) == problems(folder)


def test_ranks_share_the_hashing(folder):
    flip(folder / "step-00000200" / DATA, 50)
    assert len(problems(folder, share=(0, 2))) == 2
    assert Checkpoint.open(folder, share=(1, 2)).step == 200
    assert Checkpoint.open(folder, verify=False).step == 200


def test_all_that_is_wrong_is_told_at_once(folder):
    step = folder / "step-00000200"
    (step / "rank-00000.safetensors").unlink()
    os.truncate(step / "rank-00001.safetensors", 100)
    flip(step / DATA, 50)
    size = (folder / "step-00000100" / "rank-00001.safetensors").stat().st_size
    assert problems(folder)[:-1] == (
        f"`{step / 'rank-00000.safetensors'}` is missing",
        f"`{step / 'rank-00001.safetensors'}` has 100 bytes instead of {size}",
        f"`{step / DATA}` was damaged: its SHA-256 is not the one it had",
    )
    assert problems(folder, verify=False)[:-1] == problems(folder)[:2]


def test_a_damaged_header_found_while_reading(folder):
    flip(folder / "step-00000200" / DATA, 3)
    checkpoint = Checkpoint.open(folder, verify=False)
    with pytest.raises(CheckpointError, match=f"{DATA}` cannot be read"):
        checkpoint.read("model/norm", (((0, 7),),))


def test_no_step_is_good(folder):
    for step in (100, 200):
        flip(folder / f"step-00000{step}" / DATA, 50)
    assert problems(folder)[-1] == f"none of the other checkpoints in `{folder}` is good"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda body: body.update(step=300), "was changed after it was written"),
        (lambda body: body["state"].update(lr=1), "was changed after it was written"),
        (lambda body: body["tensors"].pop("model/norm"), "was changed after it was written"),
        (lambda body: body.pop("seal"), "was changed after it was written"),
        (lambda body: body.clear(), "is not of a plancc checkpoint"),
        (lambda body: body.update(schema="plancc/artifact@1"), "is not of a plancc checkpoint"),
        (lambda body: body.update(schema="plancc/checkpoint@2"),
         "has schema plancc/checkpoint@2, this plancc reads plancc/checkpoint@1"),
    ],
)  # fmt: skip
def test_an_edited_manifest(folder, change, text):
    edit(folder / "step-00000200" / "checkpoint.json", change)
    assert text in problems(folder)[0]
    assert "step-00000100` is good" in problems(folder)[1]


@pytest.mark.parametrize("text", ["", "{", "[1]", "nonsense", '"plancc"', "[" * 100000, "\udc80"])
def test_a_manifest_that_is_none(folder, text):
    path = folder / "step-00000200" / "checkpoint.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert str(path) in problems(folder)[0]


def test_a_manifest_cut_anywhere(folder):
    path = folder / "step-00000200" / "checkpoint.json"
    whole = path.read_bytes()
    for size in range(0, len(whole) - 2, 97):
        path.write_bytes(whole[:size])
        assert str(path) in problems(folder)[0]


def test_folders_that_are_no_checkpoints(tmp_path):
    assert problems(tmp_path / "no") == (
        f"the checkpoint folder `{tmp_path / 'no'}` does not exist",
    )
    assert problems(tmp_path) == (f"there is no checkpoint in `{tmp_path}`",)
    (tmp_path / "step-00000007.partial").mkdir()
    assert "only `step-00000007.partial`, a save that never ended" in problems(tmp_path)[0]
    (tmp_path / "file").write_text("{}")
    assert "is a file, not a folder of checkpoints" in problems(tmp_path / "file")[0]
    step = tmp_path / "step-00000008"
    step.mkdir()
    assert problems(step) == (f"`{step}` is not a checkpoint: it has no checkpoint.json",)


def test_latest_is_wrong_or_missing(folder):
    latest = folder / "latest"
    latest.write_text("step-00000300\n")
    assert problems(folder) == (
        f"`{latest}` names `step-00000300`, which is not there",
        f"`{folder / 'step-00000200'}` is good: name this folder to resume from it",
    )
    latest.write_text("../elsewhere")
    assert "'../elsewhere', which names no step" in problems(folder)[0]
    latest.write_text("step-00000100\n")
    assert Checkpoint.open(folder).step == 100
    latest.unlink()
    assert Checkpoint.open(folder).step == 200


def test_a_file_named_outside_of_the_folder_is_refused(folder):
    from plancc.runtime.checkpoint import manifest

    path = folder / "step-00000200" / "checkpoint.json"
    found = manifest.parse(path)
    size, digest = found.files[DATA]
    files = {f"../step-00000100/{DATA}": (size, digest)}
    changed = manifest.Manifest(found.id, found.step, found.state, files, found.tensors)
    path.write_text(manifest.form(changed))
    assert "is missing" in problems(folder)[0]


def test_another_model(folder):
    checkpoint = Checkpoint.open(folder)
    table = {name: (x.shape, x.dtype) for name, x in tensors().items()}
    checkpoint.check_against(table)
    checkpoint.check_against({name: (shape, None) for name, (shape, _) in table.items()})
    wrong = {
        **table,
        "model/norm": ((8,), torch.bfloat16),
        "model/embed": ((12, 6), torch.float64),
        "model/block.0.qkv_": table["model/block.0.qkv"],
    }
    del wrong["model/block.0.qkv"]
    with pytest.raises(CheckpointError) as caught:
        checkpoint.check_against(wrong)
    assert caught.value.problems == (
        f"`{folder / 'step-00000200'}` does not fit:",
        "`model/block.0.qkv_` is needed, but not in the checkpoint; did you mean "
        "`model/block.0.qkv`?",
        "`model/block.0.qkv` is in the checkpoint, but not needed",
        "`model/embed` is float32, not float64",
        "`model/norm` has shape [7], not [8]",
        "`model/norm` is float32, not bfloat16",
    )
    with pytest.raises(CheckpointError, match="it is of another model"):
        checkpoint.check_against({f"other/{i}": ((1,), None) for i in range(5000)})


def test_names_and_ranges_that_it_does_not_have(folder):
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(WeightsError, match="did you mean `model/norm`"):
        checkpoint.read("model/norn", ())
    with pytest.raises(WeightsError, match="lacks"):
        checkpoint.read("model/norm", (((0, 8),),))
    assert find(checkpoint, ["model/head", "model/embed"]) == "model/embed"


def test_only_the_last_ones_are_kept(tmp_path):
    """Of the last saved, whatever their number: a run may go back to an older step."""
    for step in (100, 200, 300, 400):
        save_alone(tmp_path, step, [], keep=3)
    assert listing(tmp_path) == ["latest", "step-00000200", "step-00000300", "step-00000400"]
    saved = save_alone(tmp_path, 250, [], keep=2)
    assert saved.removed == ("step-00000300", "step-00000200") and not saved.problems
    assert listing(tmp_path) == ["latest", "step-00000250", "step-00000400"]
    assert Checkpoint.open(tmp_path).step == 250
    save_alone(tmp_path, 250, [], {"again": True}, keep=1)
    assert listing(tmp_path) == ["latest", "step-00000250"]
    assert Checkpoint.open(tmp_path).state == {"again": True}


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    mine = ["log.jsonl", "step-1.partial", "step-00000001-copy", "step-00000001.bak"]
    for name in mine:
        (tmp_path / name).mkdir()
    for step in (1, 2, 3):
        save_alone(tmp_path, step, [], keep=1)
    assert listing(tmp_path) == sorted([*mine, "latest", "step-00000003"])


def test_an_old_step_that_cannot_be_removed_is_told(tmp_path, monkeypatch):
    save_alone(tmp_path, 1, [])

    def fail(path, **options):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", fail)
    saved = save_alone(tmp_path, 2, [], keep=1)
    assert "Permission denied" in saved.problems[0]
    assert Checkpoint.open(tmp_path).step == 2
    monkeypatch.undo()
    save_alone(tmp_path, 3, [], keep=2)
    assert listing(tmp_path) == ["latest", "step-00000002", "step-00000003"]


def test_a_tensor_larger_than_a_block_of_hashing(tmp_path):
    x = {"x": torch.arange(BLOCK // 4 + 10, dtype=torch.int64)}
    save_local(tmp_path, 1, lambda rank: pieces_of(x, rank, 2), world=2)
    check_holds(Checkpoint.open(tmp_path), x)


@pytest.mark.parametrize(("step", "keep"), [(-1, 1), (1, 0)])
def test_senseless_numbers_are_a_bug(tmp_path, step, keep):
    with pytest.raises(Bug):
        save_alone(tmp_path, step, [], keep=keep)
