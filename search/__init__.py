"""From a brief to a candidate: the room that searches, and the only one that loads torch.

``python -m search BRIEF OUT`` is its only door; ``daemon`` starts it as a process and imports nothing of it.
"""
