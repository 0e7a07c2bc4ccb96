"""One module for each kind of logging set-up."""
