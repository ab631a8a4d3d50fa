"""What a run runs on: its description, what disturbs it, and what it can do at most."""
