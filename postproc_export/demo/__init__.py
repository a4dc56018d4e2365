"""The demo: a small detector of defects on real photos, fitted, exported, calibrated, attached and checked."""
