"""Files that are whole, tensor files, text: what every room uses and no configuration names."""
