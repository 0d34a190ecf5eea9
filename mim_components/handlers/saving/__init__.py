"""What an inference writes: feature files, label maps."""
