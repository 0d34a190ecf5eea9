"""Use a pre-trained network on whole volumes: feature files, and a masked volume with its reconstruction."""
