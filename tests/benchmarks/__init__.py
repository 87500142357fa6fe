"""Timings, each measured in a process of its own, side by side in one run; never asserted in tests."""
