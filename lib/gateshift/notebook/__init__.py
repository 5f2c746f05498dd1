"""What a notebook shows: status card, tables, plots."""
