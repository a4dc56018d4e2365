"""Models in memory: attach, find, update and take off a tail or a step, in each format."""
