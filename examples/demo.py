"""The demo: a plan of a dozen lines, an unmodified model, 16 ranks in one process; then a real encoder.

make demo      (or: python examples/demo.py)
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
MODEL = [
    "--model", str(HERE / "models.py") + ":dense", "--model-arg", "layers=4",
    "--model-arg", "hidden=256", "--model-arg", "heads=8", "--model-arg", "ffn=512",
    "--model-arg", "vocab=256",
]  # fmt: skip


def plancc(*words: str) -> None:
    """Show a command, run it, stop at a failure."""
    print("\n$ plancc " + shlex.join(words), flush=True)
    subprocess.run([sys.executable, "-m", "plancc", *words], check=True)


def main() -> None:
    """Compile, verify, generate, embed."""
    begin = time.perf_counter()
    with TemporaryDirectory() as folder:
        out = f"{folder}/tp8_pp2"
        print((HERE / "tp8_pp2.plan").read_text())
        plancc("compile", str(HERE / "tp8_pp2.plan"), *MODEL, "-o", out)
        plancc("run", out, "--prompt", "The quick brown fox", "--new-tokens", "16", "--check")
    print("\n$ python examples/embed.py --tp 6", flush=True)
    subprocess.run([sys.executable, str(HERE / "embed.py"), "--tp", "6"], check=True)
    print(f"\ndemo finished in {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    main()
