"""The loop closed on a simulated market: does reward hacking spiral, and what stops it?"""
