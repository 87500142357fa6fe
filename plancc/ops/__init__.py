"""Custom operators that graphs and emitted programs call: attention, experts, sharded embedding."""
