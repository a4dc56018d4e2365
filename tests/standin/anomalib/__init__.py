"""A stand-in for Anomalib 2.7: what the drop-in post-processor touches of it, small enough for the ordinary suite.

`tests/parity/test_anomalib.py` compares every signature here with the real package's, where that is installed.
"""
