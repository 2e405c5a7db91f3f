"""Step-level continuous batching: pictures of all users and jobs share network calls, one evaluation at a time.

A work is a generator that asks (a picture's latents at its timestep) and is sent the answer, as the samplers' walks
are; a tick takes the most urgent asks that can share a call, answers them together, and sends each its own answer. So
stream batch, many users at once, jobs beside live drawing, and draining are one thing.
"""
