"""Programs that use egattn's public API like any user."""
