"""What people see and touch: the command ``instar`` and the pages. It holds no authority of its own."""
