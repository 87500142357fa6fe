"""Print the attention kernels: those present with their properties, the others with the reason."""

from __future__ import annotations

from plancc.ops.kernels import Kernel, available


def describe(kernel: Kernel) -> str:
    """Return the declared properties of a kernel as one line of text."""
    facts = (
        ("backward", kernel.supports_backward),
        ("mask", kernel.supports_mask),
        ("softcap", kernel.supports_softcap),
        ("empty", kernel.supports_empty),
        ("different v dim", kernel.supports_different_v_dim),
        ("gqa", kernel.native_gqa),
    )
    dtypes = " ".join(str(dtype).removeprefix("torch.") for dtype in kernel.dtypes)
    return (
        f"{' '.join(kernel.devices) or 'any device'}; {dtypes}; lse base {kernel.lse_base}; "
        f"causal {kernel.causal_alignment}; {', '.join(name for name, has in facts if has)}"
    )


def main() -> None:
    """Print one line for each kernel, present ones first."""
    for presence in sorted(available(), key=lambda presence: presence.missing is not None):
        text = f"skipped: {presence.missing}" if presence.missing else describe(presence.kernel)
        print(f"{presence.kernel.name:15}{text}")


if __name__ == "__main__":
    main()
