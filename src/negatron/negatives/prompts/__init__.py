"""Versioned prompts for language models, each a TOML file read by `files` and answered to one of the parsers in `parsers`.

A prompt's name carries its version: `syneg.v1`. Its wording never changes under that name; another wording is another version.
"""
