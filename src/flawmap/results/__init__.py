"""What is made of predictions: pictures."""
