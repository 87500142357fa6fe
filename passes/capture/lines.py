"""Where in the model a traced node comes from: module path, and line of the model's own code."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import fx

import plancc.models

_FRAME = re.compile(r'File "(.+?)", line (\d+)')
NOT_MODEL = (
    str(Path(torch.__file__).parent) + "/",
    str(Path(plancc.models.__file__).parent) + "/",
    str(Path(__file__).resolve().parents[1]) + "/",
)
"""Folders whose frames are torch's or plancc's own."""


def module_path(node: fx.Node) -> str:
    """Return the path of the innermost module that made the node, "" for the root."""
    stack = node.meta.get("nn_module_stack") or {}
    path = list(stack.values())[-1][0] if stack else ""
    return "" if path.startswith("_empty") else re.sub(r"@\d+", "", path)


def model_line(trace: str) -> str:
    """Return "file.py:161": the innermost frame of a stack trace outside torch and plancc."""
    frames = [
        (path, line) for path, line in _FRAME.findall(trace) if not path.startswith(NOT_MODEL)
    ]
    modelled = [frame for frame in frames if "transformers/models/" in frame[0]]
    frames = modelled or frames
    return f"{Path(frames[-1][0]).name}:{frames[-1][1]}" if frames else ""
