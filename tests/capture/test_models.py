"""`--model` specs: what they build, and what each mistake says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from model_zoo import ZOO
from safetensors.torch import save_file
from torch import nn

from plancc.ir.interpret import run_graph
from plancc.models import ModelError, load_model
from plancc.passes.capture import capture

EXAMPLES = Path(__file__).parents[2] / "examples" / "models.py"


def write(folder: Path, text: str) -> str:
    """Write a model file; return its path."""
    path = folder / "mine.py"
    path.write_text("import torch\nfrom torch import nn\n" + text)
    return str(path)


def test_parameters_are_on_meta_and_buffers_real() -> None:
    loaded = load_model(f"{EXAMPLES}:dense", {"layers": "80", "hidden": "8192", "heads": "64"})
    assert all(parameter.is_meta for parameter in loaded.module.parameters())
    assert loaded.module.cos.device.type == "cpu" and loaded.module.cos.max() == 1
    assert loaded.is_causal_lm
    assert len(list(loaded.module.layers)) == 80


def test_large_random_parameters_take_no_memory(tmp_path: Path) -> None:
    spec = write(
        tmp_path,
        """
class Big(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1 << 20, 1 << 16) / 3)
        self.tied = self.weight
        self.register_buffer("table", torch.arange(8.0))
def build(): return Big()
""",
    )
    module = load_model(f"{spec}:build").module
    assert module.weight.is_meta and module.tied is module.weight
    assert module.table.tolist() == list(range(8))


def test_package_factories_and_instances() -> None:
    loaded = load_model("torch.nn:Linear", {"in_features": "3", "out_features": "4"})
    assert loaded.module.weight.shape == (4, 3) and not loaded.is_causal_lm
    module = nn.Linear(2, 2)
    assert load_model(module).module is module


@pytest.mark.parametrize(
    ("text", "value"), [("3", 3), ("0.5", 0.5), ("yes", "yes"), ("true", True), ("none", None)]
)
def test_arguments_take_their_type(tmp_path: Path, text: str, value: object) -> None:
    kind = type(value).__name__ if value is not None else "int | None"
    spec = write(
        tmp_path,
        f"""
def build(x: {kind} = None):
    module = nn.Linear(1, 1)
    module.x = x
    return module
""",
    )
    assert load_model(f"{spec}:build", {"x": text}).module.x == value


@pytest.mark.parametrize(
    ("spec", "args", "said"),
    [
        ("thing", {}, "cannot read the model"),
        ("nothere.py:f", {}, "no model file"),
        ("not_a_package.at_all:f", {}, "does not import"),
        (f"{EXAMPLES}:nope", {}, "has no factory `nope`"),
        (f"{EXAMPLES}:dense", {"layer": "2"}, "has no argument `layer`"),
        (f"{EXAMPLES}:dense", {"layers": "two"}, "must be int, not `two`"),
        (f"{EXAMPLES}:dense", {"heads": "0"}, "ZeroDivisionError"),
        ("collections:OrderedDict", {}, "not an nn.Module"),
        ("hf:/nowhere", {}, "no config.json"),
        ("hf:.", {"layers": "2"}, "takes no model arguments"),
    ],
)
def test_mistakes(spec: str, args: dict[str, str], said: str) -> None:
    with pytest.raises(ModelError) as refused:
        load_model(spec, args)
    assert said in str(refused.value)


def test_broken_files(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not import") as refused:
        load_model(f"{write(tmp_path, 'def f(:')}:f")
    assert "SyntaxError" in str(refused.value)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="not readable"):
        load_model(f"hf:{tmp_path}")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no_such_family"}))
    with pytest.raises(ModelError, match="is refused"):
        load_model(f"hf:{tmp_path}")


@pytest.mark.parametrize("name", ["llama_tied", "bert"])
def test_hugging_face_folder(tmp_path: Path, name: str) -> None:
    original = ZOO[name]()
    original.save_pretrained(tmp_path)
    loaded = load_model(f"hf:{tmp_path}")
    assert loaded.is_causal_lm == (name != "bert")
    assert loaded.weights == (tmp_path / "model.safetensors",) and loaded.tokenizer is None
    assert loaded.facts["heads"] == 6 and loaded.facts["layers"] == 2
    assert all(parameter.is_meta for parameter in loaded.module.parameters())
    graph = capture(loaded)
    inputs = {"input_ids": torch.randint(3, 100, (2, 7))}
    if name == "bert":
        inputs["attention_mask"] = torch.ones(2, 7, dtype=torch.long)
    with torch.no_grad():
        want = original(**inputs)
    got = run_graph(graph, original.state_dict(), inputs)
    for output, value in got.items():
        torch.testing.assert_close(value, want[output])


def test_weights_and_tokenizer_are_found(tmp_path: Path) -> None:
    ZOO["llama"]().config.save_pretrained(tmp_path)
    assert load_model(f"hf:{tmp_path}").weights is None
    for part in ("model-00002-of-00002", "model-00001-of-00002"):
        save_file({part: torch.zeros(1)}, tmp_path / f"{part}.safetensors")
    (tmp_path / "tokenizer.json").write_text("{}")
    loaded = load_model(f"hf:{tmp_path}")
    assert [path.name[:11] for path in loaded.weights or ()] == ["model-00001", "model-00002"]
    assert loaded.tokenizer == tmp_path
