"""Tensor -> its elements in C order, little-endian, block by block. (interface; being written)"""
