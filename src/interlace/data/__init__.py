"""FineVision-shaped data: draw samples, read them as conversations, turn them into batches."""
