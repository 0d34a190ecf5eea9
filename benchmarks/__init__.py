"""Measurements that are run by hand; none is needed to use the software."""
