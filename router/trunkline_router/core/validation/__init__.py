"""Input validation: enforces the constraints stated in the contract."""
