"""What is counted, named and logged."""
