"""The objective in other training loops; each module needs the extra of its name."""
