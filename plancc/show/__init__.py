"""What people see of a predicted or measured step: traces, an HTML page, a summary in the terminal, plots."""
