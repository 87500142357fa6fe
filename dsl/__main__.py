"""`python -m plancc.dsl` rewrites plan.table.json after a change of plan.lark."""

import os
import subprocess
import sys

from plancc.dsl.grammar import TABLE, table_text

# lark numbers its states in hash order: one seed, one table.
if os.environ.get("PYTHONHASHSEED") == "0":
    TABLE.write_text(table_text(), "utf-8")
else:
    command = [sys.executable, "-m", "plancc.dsl"]
    subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "0"}, check=True)
