"""What operators see of the edge."""
