"""Publishing adapters and loading them again."""
