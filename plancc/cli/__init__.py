"""The command line: one module a command; arguments and exit codes, no logic."""
