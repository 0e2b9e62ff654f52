"""Ways in and out of torch: export, running and comparing exported models."""
