"""Measurements to run by hand; none is needed to use the software."""
