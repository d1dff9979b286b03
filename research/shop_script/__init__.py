"""Lists of `adagrpo decide` against a script of half an hour, in a simulated shop with impressions and prices."""
