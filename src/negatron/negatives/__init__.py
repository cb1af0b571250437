"""Negatives: proposed by sources, judged by filters, chosen by mixing, with their provenance on file."""
