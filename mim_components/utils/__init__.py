"""Safe files, tensor files and text: helpers that every package uses and no configuration names."""
