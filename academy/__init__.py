"""Stateful, asynchronous agents for supercomputers."""
