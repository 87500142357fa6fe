"""A process that tries settings: an order on the first line of stdin, settings on the others."""

from __future__ import annotations

import json
import sys

from plancc.tune.forms import sets_of
from plancc.tune.jobs import open_bench, order_of


def main() -> int:
    """Answer each setting with its attempt, until there are no more."""
    bench = open_bench(order_of(json.loads(sys.stdin.readline())))
    for line in sys.stdin:
        (attempt,) = bench.tries([sets_of(json.loads(line))])
        answer = {"attempt": attempt.json(), "notes": list(bench.notes)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
