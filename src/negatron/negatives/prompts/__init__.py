"""Versioned prompts for language models, each with its parser."""
