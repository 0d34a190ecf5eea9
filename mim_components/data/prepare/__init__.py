"""The phase before training: check everything, list everything that is bad, split, fill the cache."""
