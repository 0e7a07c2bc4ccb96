"""What can be learnt about a batch job, from inside of it and from a login node."""
