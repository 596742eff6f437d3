"""A functional simulator of the crossbars: bit-serial inputs, bit-sliced weights, clipping ADCs."""
