"""Protocol v1 (REST and server-sent events), both ways: serving it and speaking it."""
