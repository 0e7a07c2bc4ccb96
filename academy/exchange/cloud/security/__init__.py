"""Who is let in, to what and for how long; and how clients know the exchange."""
