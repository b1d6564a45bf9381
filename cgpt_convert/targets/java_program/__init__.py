"""Parameter folders for the Java program demo-gpt-java."""
