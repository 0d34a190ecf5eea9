"""Finding scans: folders, lists, collections, and layouts of datasets."""
