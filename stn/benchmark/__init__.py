"""Speed beside what users would run instead: python -m stn.benchmark."""
