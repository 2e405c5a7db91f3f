"""Floor 8: teach a student to do in a few steps what its teacher does in many. Objectives are functions, recipes are
data.

Never in here: argument parsing, file formats, a loss inside the trainer, a branch on the model's family.
"""
