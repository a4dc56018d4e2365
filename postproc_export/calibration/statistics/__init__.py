"""The statistics of a level: threshold, rates, areas, curve, bootstrap interval."""
