"""Fine-tuning of the layers that a plan chose: two recipes over one Hugging Face Trainer."""
