"""Health and metrics of the edge, for operators."""
