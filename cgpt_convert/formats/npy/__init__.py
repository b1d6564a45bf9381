"""NumPy files: .npy, folders of them, and .npz."""
