"""What a graph says of its post-processing, whatever its format: our tail, Anomalib's, and what they decide."""
