"""Models behind their seams: encoders, language models, indexes, and the vectors they make."""
