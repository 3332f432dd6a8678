"""What all layers share: errors, what a setting is, files, checksums, seeds, threads, and the loop that trains."""
