"""What stands in a finished file: our tail, Anomalib's, and what they decide, whatever the format."""
