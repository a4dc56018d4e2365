"""Tails of one's own: steps before the normalise-threshold tail and behind it, attached, found, checked and removed."""
