"""The networks: families, text encoders, UNet, autoencoder, LoRA layers for training.

Never enters: noise schedules, file paths, seeds.
"""
