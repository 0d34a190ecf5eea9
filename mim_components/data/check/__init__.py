"""Checks whether scans are fit for training."""
