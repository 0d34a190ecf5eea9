"""From the folder of a labelled dataset to checked cases, divided into training and validation."""
