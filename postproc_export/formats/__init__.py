"""The model formats: what is put on models and taken off again, in memory and in files."""
