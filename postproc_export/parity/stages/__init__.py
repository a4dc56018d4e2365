"""From the PyTorch model to the attached file, stage by stage: which one brought a flip in."""
