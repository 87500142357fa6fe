"""`python -m plancc`."""

import sys

from plancc.cli.main import main

sys.exit(main())
