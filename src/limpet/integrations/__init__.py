"""Small helpers for frameworks, one file each. None of them imports its framework: what they work on is handed in."""
