"""The gate: two revisions measured in turns on one device, and what may be concluded."""
