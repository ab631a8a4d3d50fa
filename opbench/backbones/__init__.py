"""Whole networks as operators of a sweep, at the levels block and model; the networks themselves are opbench.models."""
