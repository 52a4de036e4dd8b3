"""People label: a local page on a preference store, and what their labels are worth."""
