"""The passes: small, pure, named verb_object; `plancc.compiler.PIPELINE` lists them in order."""

if __name__ == "passes":
    raise ImportError("import plancc.passes, not passes")
