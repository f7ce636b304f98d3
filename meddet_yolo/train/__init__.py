"""Training: Ultralytics' trainer with frozen teachers beside it."""
