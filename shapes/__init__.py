"""The shape lists that ship with opbench, as YAML files."""
