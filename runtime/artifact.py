"""An artifact folder as the runtime sees it: checked against its hashes, never unpickled."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from plancc.ir.mesh import Grid

SCHEMA = "plancc/artifact@1"
STRIDE = 100_000
"""Instruction numbers of one program lie within one stride."""


class ArtifactError(Exception):
    """The folder is not an artifact, or it was changed after it was written."""


class Artifact:
    """A loaded folder; `manifest` is its manifest.json."""

    def __init__(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        self.folder = folder
        self.manifest = manifest
        self.world: int = manifest["world"]
        self._modules: dict[str, ModuleType] = {}

    @cached_property
    def grids(self) -> dict[str, Grid]:
        """The meshes as grids of world ranks."""
        return {
            name: Grid(name, tuple((a, n) for a, n in row["axes"]), tuple(row["ranks"]))
            for name, row in self.manifest["grids"].items()
        }

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases that were compiled, in order."""
        return tuple(dict.fromkeys(p["phase"] for p in self.manifest["programs"]))

    def program(
        self, phase: str, rank: int, env: Mapping[str, int], variant: int | None = None
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """The (variant, class) rows for a phase, a rank, and inputs such as {"seq_len": 5000}.

        `variant` asks for one by number instead, whatever the inputs are.
        Raises ArtifactError where no variant covers the inputs.
        """
        rows = [row for row in self.manifest["programs"] if row["phase"] == phase]
        if not rows:
            raise ArtifactError(
                f"the artifact has no {phase} programs, only {', '.join(self.phases)}"
            )
        for row in rows:
            bounds = row["bounds"]
            fits = all(lo <= env[name] <= hi for name, (lo, hi) in bounds.items() if name in env)
            if fits if variant is None else row["variant"] == variant:
                return row, next(c for c in row["classes"] if rank in c["ranks"])
        text = ", ".join(f"{k} = {v}" for k, v in env.items())
        raise ArtifactError(f"{text} is outside the range that the plan declares")

    def refuses(self, batch: int, prompt: int, new_tokens: int) -> str | None:
        """Why the declared ranges do not admit a generation; None if they do."""
        seq_len = prompt + new_tokens
        sizes = {"batch": batch, "seq_len": seq_len, "tokens": batch * seq_len}
        for name, value in sizes.items():
            known = self.manifest["inputs"].get(name)
            if known and not known[0] <= value <= known[1]:
                detail = f" ({prompt} + {new_tokens} new tokens)" if name != "batch" else ""
                return (
                    f"{name} = {value}{detail} is outside {known[0]}..{known[1]}, the plan's range"
                )
        longest = self.manifest["limits"].get("T")
        if longest is not None and prompt + new_tokens > longest:
            return (
                f"{prompt} + {new_tokens} new tokens are more than the {longest} positions "
                "that the model has"
            )
        return None

    def admit(self, batch: int, prompt: int, new_tokens: int) -> None:
        """Raise ArtifactError where `refuses` has a reason."""
        problem = self.refuses(batch, prompt, new_tokens)
        if problem:
            raise ArtifactError(problem)

    def step(self, file: str) -> Callable[..., dict[str, Any]]:
        """The `step` function of one program file."""
        step: Callable[..., dict[str, Any]] = self.module(file).step
        return step

    def module(self, file: str) -> ModuleType:
        """The functions of one program file."""
        if file not in self._modules:
            self._modules[file] = load_program(self.folder / file)
        return self._modules[file]

    def base(self, row: Mapping[str, Any]) -> int:
        """What is added to the instruction numbers of a program, so that they tell which one it is."""
        return STRIDE * (1 + self.manifest["programs"].index(row))

    def describe(self, rank: int, at: int) -> str:
        """What instruction `at` (with its base) of a rank is, and the plan line it comes from."""
        number, at = divmod(at, STRIDE)
        if not 0 < number <= len(self.manifest["programs"]):
            return "moving the cache or an output between steps"
        row = self.manifest["programs"][number - 1]
        for found in row["classes"]:
            if rank in found["ranks"]:
                text, span = describe_line((self.folder / found["file"]).read_text(), at)
                return f"{row['phase']}: {text}" + (f" ({span})" if span else "")
        return f"{row['phase']}: instruction {at}"

    @cached_property
    def buffers(self) -> dict[str, torch.Tensor]:
        """Buffers and constants by value name."""
        path = self.folder / "buffers.safetensors"
        if not path.exists():
            return {}
        from safetensors.torch import load_file

        return load_file(str(path))


def load_step(path: Path) -> Callable[..., dict[str, Any]]:
    """The `step` function of an emitted program file."""
    step: Callable[..., dict[str, Any]] = load_program(path).step
    return step


def load_program(path: Path) -> ModuleType:
    """The module of an emitted program file."""
    spec = importlib.util.spec_from_file_location(f"plancc_program_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def describe_line(text: str, at: int) -> tuple[str, str]:
    """The source line with `at=N)` in a program, and the plan line named above it."""
    span = ""
    for line in text.splitlines():
        if line.lstrip().startswith("# -- "):
            span = line.partition("plan ")[2].rstrip(") ") if "plan " in line else ""
        elif f"at={at})" in line:
            return line.partition("  #")[0].strip(), span
    return f"instruction {at}", ""


def load_artifact(folder: str | Path) -> Artifact:
    """Read a folder and check every file against its hash; ArtifactError if anything is off."""
    folder = Path(folder)
    path = folder / "manifest.json"
    if not path.is_file():
        raise ArtifactError(f"{folder} is not an artifact: it has no manifest.json")
    try:
        manifest = json.loads(path.read_text())
        files = manifest["files"]
        schema = manifest["schema"]
    except (ValueError, KeyError, TypeError) as problem:
        raise ArtifactError(f"{path} is not a plancc manifest ({problem})") from None
    seal = manifest.pop("seal", None)
    if seal != hashlib.sha256(json.dumps(manifest, indent=1).encode()).hexdigest():
        raise ArtifactError(f"{path} was changed after it was written")
    if schema != SCHEMA:
        raise ArtifactError(f"{path} has schema {schema}, this plancc reads {SCHEMA}")
    for name, expected in files.items():
        file = folder / name
        if not file.is_file():
            raise ArtifactError(f"{file} is missing")
        if hashlib.sha256(file.read_bytes()).hexdigest() != expected:
            raise ArtifactError(f"{file} was changed after it was compiled")
    return Artifact(folder, manifest)
