"""What a run gave and how it is stored: rows, journal, folder, and the published figures."""
