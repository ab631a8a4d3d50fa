"""What is measured: shapes, cases, and the operators' interface."""
