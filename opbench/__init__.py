"""Micro-benchmarks of vision operators: sweep them, check every value, and read the results as tidy data."""
