"""The edge's end of the link."""
