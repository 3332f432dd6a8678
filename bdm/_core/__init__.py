"""What all layers share: files, checksums, seeds, threads, messages, and the loop that trains networks."""
