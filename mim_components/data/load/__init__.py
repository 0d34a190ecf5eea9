"""The phase during training: which sample, from which file, in which process."""
