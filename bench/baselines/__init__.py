"""What Trunkline is compared with: what users have today, and the bare libraries doing the same."""
