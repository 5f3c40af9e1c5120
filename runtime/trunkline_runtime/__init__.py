"""What edge and router do alike and neither owns: how a process of theirs starts and logs."""
