"""The law, and the words it is written in: pure, no clock, no randomness, no files."""
