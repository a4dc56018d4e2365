"""Operating points, and the search for their thresholds in tables of counts."""
