"""Models in memory: attach, find, update and take off a tail, in each format."""
