"""FineVision-shaped data: samples read as conversations, turned into batches."""
