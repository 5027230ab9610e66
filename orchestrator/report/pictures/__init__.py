"""The pictures of a report: each module makes some of them, as plain dictionaries for plotly."""
