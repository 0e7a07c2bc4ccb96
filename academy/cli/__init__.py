"""The `academy` command."""
