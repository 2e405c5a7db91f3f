"""The command `fewstep`: parse, call, print. No module here imports torch before a command runs."""
