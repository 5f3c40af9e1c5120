"""How clients speak: one pure codec per file, and a registry."""
