"""Stands in for torchvision while OFA is imported; nothing in it works.

``ofa.utils`` imports its image loader and ``ofa.tutorial`` its ImageNet exam and its model zoo; at their top
these import torchvision, Pillow and gdown, which OFA's package does not require. No script here loads an
image file or downloads a model, and torchvision among the pins would tie OFA to one build of torch, so these
few names are all there is. A script that did reach one of them would fail at once instead of measuring
something else.
"""
