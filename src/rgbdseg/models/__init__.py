"""Model families behind one contract, their names, and the weights they can take."""
