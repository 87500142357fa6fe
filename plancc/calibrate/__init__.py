"""Measure this machine: into a cluster file for the simulator, and steps for real to hold it against."""
