"""What a rank program needs while it runs: transports, launchers, weights, failures."""

if __name__ == "runtime":
    raise ImportError("import plancc.runtime, not runtime")
