"""A newcomer beside the traffic, in a process of its own."""
