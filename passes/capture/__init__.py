"""Capture: an unmodified nn.Module in, a normalised one-device Graph out."""

from plancc.passes.capture.capture import capture

__all__ = ["capture"]
