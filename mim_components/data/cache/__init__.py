"""Caches of prepared volumes and transformed scans, never stale."""
