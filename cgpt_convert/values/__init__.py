"""A tensor's elements: gathered from strides, byte-swapped, cast, quantized, measured."""
