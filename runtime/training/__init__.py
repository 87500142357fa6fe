"""Training at run time: recorded segments, one step over micro-batches, the loop around it."""
