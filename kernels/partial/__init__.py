"""Partial convolution: a convolution over the first channels of an image, the others handed on as they are."""
