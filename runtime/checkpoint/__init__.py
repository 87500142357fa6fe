"""Checkpoints: saved by the ranks of one plan, resumed by those of another (see README.md)."""

from plancc.runtime.checkpoint.export import export_safetensors
from plancc.runtime.checkpoint.pieces import CheckpointError, Piece
from plancc.runtime.checkpoint.read import Checkpoint, Part
from plancc.runtime.checkpoint.save import Saved, save_checkpoint

__all__ = [
    "Checkpoint",
    "CheckpointError",
    "Part",
    "Piece",
    "Saved",
    "export_safetensors",
    "save_checkpoint",
]
