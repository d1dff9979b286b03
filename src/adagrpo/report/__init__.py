"""Reports of runs and comparisons: one offline HTML page, with tables as Markdown or plain text."""
