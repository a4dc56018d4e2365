"""What models are fed: raw values that seek trouble, and real inputs in batches."""
