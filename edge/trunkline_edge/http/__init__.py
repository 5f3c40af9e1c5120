"""HTTP on the edge's port."""
