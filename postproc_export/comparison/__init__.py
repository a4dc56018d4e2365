"""What a runtime gave beside what it should have given: differences, and every tolerance with its reason."""
