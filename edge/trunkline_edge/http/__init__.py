"""HTTP API of the edge: JSON transcoding, dialects' routes, health and metrics."""
