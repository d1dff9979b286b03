"""Other people's training loops with our objective; each module needs the extra of its name."""
