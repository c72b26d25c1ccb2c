"""How long things take; run by hand and never in tests."""
