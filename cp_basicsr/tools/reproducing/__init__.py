"""What README's results come from, and how they are made again."""
