"""Replicas that stand in for each other: a run goes on when ranks die, and takes them back."""

from plancc.runtime.failover.drive import Event, OnEvent, ignore, train_with_failover
from plancc.runtime.failover.replicas import FailoverError, Replicas, Spares, find_replicas

__all__ = [
    "Event",
    "FailoverError",
    "OnEvent",
    "Replicas",
    "Spares",
    "find_replicas",
    "ignore",
    "train_with_failover",
]
