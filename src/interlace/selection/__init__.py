"""Which layers to drop, tune and freeze: plans, and the methods that make them. No torch."""
