"""Studies: arms that are trained, evaluated and compared by one command, from a JSON file. Not installed."""
