"""Validation outputs in files: .npz, .npy, Zarr, CSV, read pass by pass."""
