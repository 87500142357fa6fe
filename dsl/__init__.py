"""The plan language: text in, `ResolvedPlan` or diagnostics out. Never imports torch."""

if __name__ == "dsl":
    raise ImportError("import plancc.dsl, not dsl")
