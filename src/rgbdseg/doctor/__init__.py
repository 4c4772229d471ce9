"""Looking a prepared dataset over and reporting what is wrong with it."""
