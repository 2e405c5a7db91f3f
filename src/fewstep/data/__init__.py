"""Floor 4: data sets. A source gives records, which are filtered and cut to buckets; pictures become latents and
captions become embeddings once, into a cache, or while training, from a stream; training reads either by (seed, step).

Never in here: sampling, devices, losses, model loading.
"""
