"""Fine-tuning of a network on labelled scans: the step, validation, the best model, and how a run is begun."""
