"""What outlives a process: journal, blobs, samples, and the lock over them."""
