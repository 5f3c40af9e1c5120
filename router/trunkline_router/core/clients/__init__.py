"""Client frames: connecting, subscribing, edits, receipts."""
