"""How redundant each decoder layer is: similarity of hidden states, and the search of SLEB."""
