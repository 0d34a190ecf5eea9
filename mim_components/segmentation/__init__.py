"""Segment whole volumes: sliding windows, regions, saved label maps, scores."""
