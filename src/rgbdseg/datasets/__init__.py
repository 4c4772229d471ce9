"""What is known about each benchmark; free of torch."""
