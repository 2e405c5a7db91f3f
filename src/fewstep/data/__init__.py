"""Floor 4: data sets on disk. Pictures become latents and captions become embeddings once; training reads them by
(seed, step).

Never in here: sampling, devices, losses, model loading.
"""
