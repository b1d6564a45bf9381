"""Report what code loading files would execute. Every pickle is traced; nothing is loaded."""
