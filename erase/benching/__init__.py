"""`erase bench methods`: every method on the same concepts and seeds, against models retrained without them."""
