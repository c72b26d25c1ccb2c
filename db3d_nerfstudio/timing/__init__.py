"""How long things take, and in what memory."""
