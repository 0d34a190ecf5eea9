"""Whether a scan is fit for training."""
