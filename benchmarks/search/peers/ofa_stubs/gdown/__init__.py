"""Stands in for gdown while OFA's model zoo is imported; see ``torchvision`` beside it for why."""
