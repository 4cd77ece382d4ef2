"""Everything at once, at random times: the promises under fire."""
