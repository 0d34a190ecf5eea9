"""Studies: train, evaluate and compare the arms of a JSON file with one command. Not installed."""
