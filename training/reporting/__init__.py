"""Reports for people: charts, pages and the model card."""
