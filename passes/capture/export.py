"""Trace a module with torch.export on fake parameters: no weight is read, copied or moved.

While it runs, the module's parameters are swapped for fake tensors (and put back afterwards), so a
meta, CPU or CUDA module traces alike, in no memory; buffers and constants keep their values.
"""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode

from plancc.models import ModelError
from plancc.passes.capture.lines import NOT_MODEL
from plancc.passes.capture.stamp import Refused

_SWAPPING = threading.RLock()


def trace(module: nn.Module, inputs: Mapping[str, Tensor]) -> ExportedProgram:
    """Export `module(**inputs)` with dynamic batch and sequence."""
    shapes = {name: dynamic_dims(value) for name, value in inputs.items()}
    with _SWAPPING, fake_parameters(module), eval_mode(module), torch.enable_grad():
        try:
            with redirect_stderr(io.StringIO()), quiet_logs():
                return torch.export.export(
                    module, (), dict(inputs), dynamic_shapes=shapes, strict=False
                )
        except (ModelError, Refused):
            raise
        except Exception as error:
            raise explain(error, module) from error


class _Tracer(fx.Tracer):
    proxy_buffer_attributes = True


class _GradMode(TorchFunctionMode):
    """Records where gradients are switched off and on, which torch.fx does not."""

    def __init__(self, tracer: _Tracer) -> None:
        super().__init__()
        self.tracer = tracer

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is torch._C._set_grad_enabled:
            self.tracer.create_proxy("call_function", func, args, {})
        return func(*args, **(kwargs or {}))


def symbolic(module: nn.Module) -> fx.GraphModule:
    """Trace with torch.fx alone, which follows no data and no size; ModelError where that fails."""
    tracer = _Tracer()
    tracer.record_stack_traces = True
    try:
        with eval_mode(module), torch.enable_grad(), _GradMode(tracer):
            graph = tracer.trace(module)
        return fx.GraphModule(module, graph, type(module).__name__).eval()
    except Exception as error:
        raise explain(error, module) from error


def explain(error: Exception, module: nn.Module) -> ModelError:
    """Make a ModelError that says which module and line of the model an export failed at."""
    names = {id(part): name for name, part in module.named_modules()}
    path = line = ""
    trace = error.__traceback__
    while trace is not None:
        frame = trace.tb_frame
        path = names.get(id(frame.f_locals.get("self")), path)
        if not frame.f_code.co_filename.startswith(NOT_MODEL):
            line = f"{Path(frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "data-dependent" in str(error) or "data dependent" in str(error):
        message = "the model cannot be captured: what it computes depends on the values of a tensor"
    else:
        message = "the model cannot be captured"
    notes = (f"{type(error).__name__}: {first}", f"module `{path}`", f"at {line}" if line else "")
    return ModelError(message, tuple(note for note in notes if note))


@contextmanager
def quiet_logs() -> Iterator[None]:
    """Keep torch from logging about an export that we report ourselves."""
    logger = logging.getLogger("torch")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


def dynamic_dims(value: Tensor) -> dict[int, Any]:
    """Return the dynamic dims of an example input: batch, and the sequence where it has one."""
    count = 1 if value.dim() == 4 else min(value.dim(), 2)
    return {dim: Dim.DYNAMIC for dim in range(count)}


@contextmanager
def fake_parameters(module: nn.Module) -> Iterator[None]:
    """Swap parameters for fake CPU tensors, and buffers off the CPU for CPU ones, while inside."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes: dict[int, Any] = {}
    saved: list[tuple[dict[str, Any], str, Any]] = []

    def swap(owner: dict[str, Any], name: str, make: Any) -> None:
        old = owner[name]
        if id(old) not in fakes:
            fakes[id(old)] = make(old)
        saved.append((owner, name, old))
        owner[name] = fakes[id(old)]

    def fake(old: Tensor) -> nn.Parameter:
        with mode:
            return nn.Parameter(torch.empty(old.shape, dtype=old.dtype), requires_grad=False)

    try:
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None:
                    swap(part._parameters, name, fake)
            for name, buffer in part._buffers.items():
                if buffer is not None and buffer.device.type != "cpu":
                    swap(part._buffers, name, lambda old: old.detach().cpu())
        yield
    finally:
        for owner, name, old in reversed(saved):
            owner[name] = old


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put the module in evaluation mode while inside."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
