"""Ways to run a network: each is a Denoiser, and tells nothing else of itself to a sampler.

Never enters: prompts, seeds.
"""
