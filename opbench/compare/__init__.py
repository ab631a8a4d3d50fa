"""Two or more results against each other: ratios, verdicts, baselines, history."""
