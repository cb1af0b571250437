"""Data sets: the only place that knows file formats and foreign words for ids."""
