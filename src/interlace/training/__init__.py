"""Fine-tuning of the layers a plan chose, with the Hugging Face Trainer under DeepSpeed ZeRO-3."""
