"""What PyTorch eager makes of raw values, and the cases for which that is asked."""
