"""Replicas that stand in for each other: a run goes on when ranks die, and takes them back."""

from plancc.runtime.failover.replicas import FailoverError, Replicas, Spares, find_replicas

__all__ = ["FailoverError", "Replicas", "Spares", "find_replicas"]
