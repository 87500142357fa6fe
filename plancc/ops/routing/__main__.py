"""Print the routing kernels: those present with their properties, the others with the reason."""

from __future__ import annotations

from plancc.ops.routing import Kernel, available


def describe(kernel: Kernel) -> str:
    """Return the declared properties of a kernel as one line of text."""
    dtypes = " ".join(str(dtype).removeprefix("torch.") for dtype in kernel.dtypes)
    note = "; interpreted, by name only" if kernel.interpreted else ""
    return f"{' '.join(kernel.devices) or 'any device'}; {dtypes}{note}"


def main() -> None:
    """Print one line for each kernel, present ones first."""
    for presence in sorted(available(), key=lambda presence: presence.missing is not None):
        text = f"skipped: {presence.missing}" if presence.missing else describe(presence.kernel)
        print(f"{presence.kernel.name:15}{text}")


if __name__ == "__main__":
    main()
