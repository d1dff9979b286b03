"""The log of what was shown: rows of lists and feedback, the folder that keeps them, and logs of several machines."""
