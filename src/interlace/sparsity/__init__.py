"""2:4 sparsity of the decoder's weights: the baselines Wanda and magnitude."""
