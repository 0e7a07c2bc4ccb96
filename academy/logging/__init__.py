"""Logging set-ups that travel to workers.

`academy.logging.recommended.recommended_logging` makes one that suits most programs.
Without one, Academy leaves logging as the program has set it up.
"""
