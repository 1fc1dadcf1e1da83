"""Ray actors that score responses (PRMU, tag constraints), and the clients that ask them."""
