"""Plant faults in the text of emitted training programs, in all classes alike."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from lowered import SCRATCH, Lowered

from plancc.runtime.artifact import load_artifact
from plancc.verification import Verification, VerifyResult

Edit = tuple[str, str]
"""(a line of a program, what stands in its place)."""

CALL = re.compile(r"^ +[\w., ]+? = (?P<call>comm\.(?P<verb>\w+)\((?P<args>.*?)\))(?: +#.*)?$")
FIRST = re.compile(r"^(\((?:[^()]*)\)|[^,()]+(?:\[[^]]*\])?)")
GRADIENT = re.compile(r"the gradient of ([\w.]+)|no rank has the gradient of ([\w.]+)")


def sources(lowered: Lowered) -> dict[str, str]:
    """File -> text of the training programs."""
    folder = lowered.artifact.folder
    return {path.name: path.read_text() for path in sorted(folder.glob("train_*.py"))}


def backward_lines(lowered: Lowered) -> list[str]:
    """Every line after the forward of any class, once, in order."""
    found: dict[str, None] = {}
    for text in sources(lowered).values():
        inside = False
        for line in text.splitlines():
            if line.startswith("def "):
                inside = line.startswith(("def backward", "def reduce"))
            if inside:
                found[line] = None
    return list(found)


def calls(lines: list[str], *verbs: str) -> Iterator[tuple[str, re.Match[str]]]:
    """The lines that communicate by one of `verbs`."""
    for line in lines:
        match = CALL.match(line)
        if match and match["verb"] in verbs:
            yield line, match


def operand(match: re.Match[str]) -> str:
    """The first argument of a call."""
    found = FIRST.match(match["args"])
    assert found is not None, match["args"]
    return found[0]


def replaced(line: str, match: re.Match[str], new: str) -> Edit:
    """A line with another call."""
    return line, line.replace(match["call"], new)


def faulty(lowered: Lowered, change: Callable[[str], str]) -> Lowered:
    """A copy of the artifact with changed programs, sealed anew; at least one changes."""
    folder = Path(tempfile.mkdtemp(dir=SCRATCH.name)) / "artifact"
    shutil.copytree(lowered.artifact.folder, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["seal"]
    changed = 0
    for name, text in sources(lowered).items():
        new = change(text)
        changed += new != text
        (folder / name).write_text(new)
        manifest["files"][name] = hashlib.sha256(new.encode()).hexdigest()
    assert changed
    manifest["seal"] = hashlib.sha256(json.dumps(manifest, indent=1).encode()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))
    return Lowered(lowered.compiled, load_artifact(folder))


def result_of(lowered: Lowered, edit: Edit) -> VerifyResult:
    """What verification says of the programs with one line replaced."""
    old, new = edit
    broken = faulty(lowered, lambda text: text.replace(old + "\n", new + "\n"))
    return Verification(broken.compiled, broken.artifact).run()


def named(result: VerifyResult) -> str | None:
    """The parameter that a message names; None if it names none."""
    for one in result.variants:
        match = GRADIENT.search(one.message)
        if match:
            return match[1] or match[2]
    return None
