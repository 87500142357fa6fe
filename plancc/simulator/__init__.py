"""What a plan does on hardware that need not be there: time, memory, traffic, who waits for whom."""
