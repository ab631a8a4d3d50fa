"""From a request to rows: plan, run, check."""
