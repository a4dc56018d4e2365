"""Custom steps: what stands before the normalise-threshold tail and behind it, shipped or a class of the user's."""
