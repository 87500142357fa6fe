"""RankProgram to readable Python, manifest and weight table."""
