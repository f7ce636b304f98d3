"""Images and labels: reading, converting and generating them."""
