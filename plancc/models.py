"""Models by name: what `--model` says, built with parameters on meta and real buffers.

`package.module:factory`, `path/to/file.py:factory` (with `--model-arg k=v`) or `hf:FOLDER`.
No weight is allocated or initialised, so an 80-layer 70B shape loads in a second.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

_LARGE = 2**22
"""Random fills with more elements than this go straight to meta: they can only be parameters."""
_FACTORIES = {torch.empty, torch.rand, torch.randn, torch.zeros, torch.ones, torch.full}
_FACTS = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads"),
    "hidden": ("hidden_size", "n_embd", "d_model", "dim"),
    "ffn": ("intermediate_size", "n_inner", "ffn_dim", "d_ff", "hidden_dim"),
    "vocab": ("vocab_size",),
    "experts": ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"),
    "top_k": ("num_experts_per_tok", "moe_k"),
    "max_len": ("max_position_embeddings", "n_positions", "max_seq_len"),
}


class ModelError(Exception):
    """The model cannot be found, built or captured: the user's side, exit code 1."""

    def __init__(self, message: str, notes: tuple[str, ...] = ()) -> None:
        self.message = message
        self.notes = notes
        super().__init__("\n".join((message, *(f"note: {note}" for note in notes))))


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model as `--model` names it: parameters on meta unless a Python user gave the module.

    `weights` are safetensors files (None: there are none), `tokenizer` a folder, `facts` what the
    config says (layers, heads, kv_heads, hidden, ffn, vocab, experts, top_k, max_len).
    """

    module: nn.Module
    spec: str
    weights: tuple[Path, ...] | None = None
    tokenizer: Path | None = None
    is_causal_lm: bool = False
    facts: Mapping[str, int] = field(default_factory=dict)


def load_model(
    spec: str | nn.Module,
    args: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> LoadedModel:
    """Load what `spec` names (or wrap a module), in `dtype` if one is given.

    Raises ModelError where it cannot be.
    """
    if isinstance(spec, nn.Module):
        return describe(in_dtype(spec, dtype), type(spec).__name__)
    if spec.startswith("hf:"):
        if args:
            raise ModelError(f"`{spec}` takes no model arguments: its config.json has them")
        return load_folder(spec, dtype)
    place, colon, name = spec.rpartition(":")
    if not colon or not place or not name:
        raise ModelError(
            f"cannot read the model `{spec}`",
            ("write package.module:factory, path/to/file.py:factory or hf:FOLDER",),
        )
    factory = find_factory(place, name, spec)
    options = typed_arguments(factory, args or {}, spec)
    with meta_parameters():
        module = call(lambda: factory(**options), f"`{spec}` failed")
    if not isinstance(module, nn.Module):
        raise ModelError(f"`{spec}` returned a `{type(module).__name__}`, not an nn.Module")
    check_buffers(module, spec)
    return describe(module if dtype is None else module.to(dtype), spec)


def in_dtype(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """A copy of a live module in another dtype (floating parameters and buffers); None: itself."""
    return module if dtype is None else copy.deepcopy(module).to(dtype)


def describe(module: nn.Module, spec: str) -> LoadedModel:
    """Wrap a module with what its config (if any) says."""
    config = getattr(module, "config", None)
    named = any(kind in type(module).__name__ for kind in ("ForCausalLM", "LMHeadModel"))
    embeds = any(isinstance(part, nn.Embedding) for part in module.modules())
    return LoadedModel(
        module, spec, is_causal_lm=named or (config is None and embeds), facts=facts(config)
    )


def find_factory(place: str, name: str, spec: str) -> Callable[..., Any]:
    """Import the module or file of a spec and return its factory."""
    if place.endswith(".py"):
        path = Path(place)
        if not path.is_file():
            raise ModelError(f"no model file `{place}`")
        source = call(lambda: import_file(path), f"`{place}` does not import")
    else:
        source = call(lambda: importlib.import_module(place), f"`{place}` does not import")
    factory = getattr(source, name, None)
    if not callable(factory):
        functions = sorted(
            key
            for key, value in vars(source).items()
            if callable(value) and getattr(value, "__module__", None) == source.__name__
        )
        raise ModelError(
            f"`{place}` has no factory `{name}`", (f"it has: {', '.join(functions) or 'none'}",)
        )
    return factory


def import_file(path: Path) -> types.ModuleType:
    """Import a Python file under a name of its own; modules beside it can be imported by it."""
    name = f"plancc_model_{path.stem}_{abs(hash(path.resolve())):x}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    folder = str(path.resolve().parent)
    sys.path.insert(0, folder)
    try:
        found.loader.exec_module(module)
    finally:
        sys.path.remove(folder)
    return module


def call(action: Callable[[], Any], message: str) -> Any:
    """Run a user's code; anything it raises becomes a ModelError with the innermost line."""
    try:
        return action()
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        where = ""
        if trace is not None:
            where = f"at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        raise ModelError(message, (f"{type(error).__name__}: {error}", where)) from error


def typed_arguments(
    factory: Callable[..., Any], args: Mapping[str, str], spec: str
) -> dict[str, Any]:
    """Convert `--model-arg` texts by the factory's annotations or defaults."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):
        parameters = {}
    try:
        hints = typing.get_type_hints(factory)
    except (NameError, TypeError):
        hints = {}
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    typed: dict[str, Any] = {}
    for name, text in args.items():
        if name not in parameters and not open_ended:
            known = ", ".join(parameters) or "none"
            raise ModelError(f"`{spec}` has no argument `{name}`", (f"it has: {known}",))
        default = parameters[name].default if name in parameters else None
        typed[name] = typed_value(text, hints.get(name), default, f"{spec}: `{name}`")
    return typed


def typed_value(text: str, hint: Any, default: Any, where: str) -> Any:
    """Convert a text by annotation, else by the default's type, else to a number if it is one."""
    kinds = [kind for kind in (typing.get_args(hint) or (hint,)) if kind not in (None, type(None))]
    if kinds == [] or not all(isinstance(kind, type) for kind in kinds):
        kinds = [type(default)] if default not in (None, inspect.Parameter.empty) else []
    if text in ("None", "none") and default is None:
        return None
    if bool in kinds:
        if text.lower() not in ("true", "false", "1", "0"):
            raise ModelError(f"{where} must be true or false, not `{text}`")
        return text.lower() in ("true", "1")
    for kind in kinds or [int, float, str]:
        if kind in (int, float, str):
            try:
                return kind(text)
            except ValueError:
                continue
    names = " or ".join(kind.__name__ for kind in kinds)
    raise ModelError(f"{where} must be {names}, not `{text}`")


def load_folder(spec: str, dtype: torch.dtype | None = None) -> LoadedModel:
    """Load a Hugging Face folder: config.json, safetensors files and a tokenizer if it has them.

    Without a dtype, that of the config. The buffers that transformers keeps in float32 stay so.
    """
    folder = Path(spec.removeprefix("hf:"))
    config_file = folder / "config.json"
    if not config_file.is_file():
        raise ModelError(f"no config.json in `{folder}`")
    try:
        raw = json.loads(config_file.read_text())
    except (OSError, ValueError) as error:
        raise ModelError(f"`{config_file}` is not readable", (str(error),)) from error
    try:
        import transformers
    except ImportError:
        raise ModelError(
            "hf: models need the `transformers` package", ("pip install plancc[hf]",)
        ) from None
    config = call(
        lambda: transformers.AutoConfig.from_pretrained(folder), f"`{config_file}` is refused"
    )
    wanted = [str(name) for name in raw.get("architectures") or ()]
    causal = any(name.endswith(("ForCausalLM", "LMHeadModel")) for name in wanted)
    kind = transformers.AutoModelForCausalLM if causal else transformers.AutoModel
    with meta_parameters():
        options = {} if dtype is None else {"dtype": dtype}
        module = call(lambda: kind.from_config(config, **options), f"`{spec}` cannot be built")
    check_buffers(module, spec)
    weights = tuple(sorted(folder.glob("*.safetensors")))
    tokens = any(
        (folder / name).is_file()
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
    )
    return LoadedModel(
        module.eval(), spec, weights or None, folder if tokens else None, causal, facts(config)
    )


def facts(config: Any) -> dict[str, int]:
    """Return the sizes that a config states, under plancc's names."""
    config = getattr(config, "text_config", config)
    known: dict[str, int] = {}
    for fact, names in _FACTS.items():
        value = next(
            (v for name in names if isinstance(v := getattr(config, name, None), int)), None
        )
        if value is not None:
            known[fact] = value
    return known


@contextmanager
def meta_parameters() -> Iterator[None]:
    """Put every parameter that is registered while inside on meta; buffers keep their values."""
    moved = WeakIdKeyDictionary()

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta:
            return parameter
        if parameter not in moved:
            empty = torch.empty(parameter.shape, dtype=parameter.dtype, device="meta")
            moved[parameter] = nn.Parameter(empty, parameter.requires_grad)
        return moved[parameter]

    hook = register_module_parameter_registration_hook(to_meta)
    try:
        with _LargeOnMeta():
            yield
    finally:
        hook.remove()


class _LargeOnMeta(TorchFunctionMode):
    """Makes large tensors on meta, which factories fill only to wrap them as parameters."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES and "device" not in kwargs and _elements(args, kwargs) > _LARGE:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def _elements(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    sizes = kwargs.get("size", args[0] if args and isinstance(args[0], (tuple, list)) else args)
    count = 1
    for size in sizes:
        count *= size if isinstance(size, int) else 1
    return count


def check_buffers(module: nn.Module, spec: str) -> None:
    """Refuse a model whose buffers have no values."""
    lost = [name for name, buffer in module.named_buffers() if buffer.is_meta]
    if lost:
        raise ModelError(f"`{spec}`: buffer `{lost[0]}` is on meta, so its value is not known")
