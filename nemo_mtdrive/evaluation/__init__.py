"""What a run came to: summaries, tables, figures and the page that shows them."""
