"""What operators see of the router."""
