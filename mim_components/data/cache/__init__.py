"""What was prepared, memory-mapped and never stale."""
