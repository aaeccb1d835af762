"""Speed, compared with what users would run instead: python -m stn.benchmark."""
