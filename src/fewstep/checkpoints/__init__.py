"""Model and LoRA files: reading, checking, writing.

Never enters: sampling, devices of a picture, prompts.
"""
