"""Comparisons on drift streams: recipes, cells that resume, summaries, the report."""
