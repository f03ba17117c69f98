"""What a run shows for itself: report.json, tables, plots and the neighbour page."""
