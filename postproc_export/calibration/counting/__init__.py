"""Exact counts of raw values: arrays checked and cut into blocks, histograms of ordered bits, tables of bins."""
