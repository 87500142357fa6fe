"""What deriving a backward takes: activity, pending states, segments, the reverse, the reduction."""
