"""What the attached file was made from, run apart: the raw file and the PyTorch model."""
