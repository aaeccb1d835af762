"""A run as one HTML page: python -m stn.report."""
