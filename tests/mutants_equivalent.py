"""Changes of `make mutants` that change nothing a user can see: module, the changed line, why no test can tell."""

EQUIVALENT: dict[str, dict[str, str]] = {}
