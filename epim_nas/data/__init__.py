"""Data sets: reproducible batches of images and labels in three splits."""
