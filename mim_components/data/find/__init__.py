"""Which files are scans, and of whom."""
