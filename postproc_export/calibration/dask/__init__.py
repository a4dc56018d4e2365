"""Calibrating where Dask has the data."""
