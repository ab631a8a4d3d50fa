"""A site of a project's runs: static pages that link to each other."""
