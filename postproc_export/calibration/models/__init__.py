"""Calibrating on a raw model that is run over images."""
