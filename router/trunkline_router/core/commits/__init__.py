"""From a message to a durable log entry and its delivery."""
