"""Files and folders that survive a crash, belong to this program, and are what they were when written."""
